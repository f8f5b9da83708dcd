"""Run decoders on the same prompts, interleaved, and say what each of them did and whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from radar.generation.base import Decoder, GenerationOutput
from radar.metrics import DecodeMetrics, merge

__all__ = ["Comparison", "Contender", "compare", "render"]


@dataclass
class Contender:
    """A decoder under a name. `prepare` runs before each generation: it sets the policy on a shared decoder."""

    name: str
    decoder: Decoder
    prepare: Callable[[], None] = lambda: None
    outputs: list[GenerationOutput] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Figures of one decoder over all prompts and repeats.

    Attributes:
        name: of the contender.
        metrics: summed over every generation; tokens per second is a ratio of sums.
        milliseconds_per_round: by part, means over rounds; the prompt's pass is left out.
        slowest, fastest: tokens per second of single repeats.
    """

    name: str
    metrics: DecodeMetrics
    milliseconds_per_round: dict[str, float]
    slowest: float
    fastest: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    contenders: Sequence[Contender],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    repeats: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[Comparison], bool]:
    """Decode every prompt with every contender in turn, `repeats` times after a warm-up.

    Args:
        contenders: the decoders; with `fallback=False`, as means over rounds leave plain steps out.
        prompts: token ids.
        max_new_tokens: limit of each output.
        repeats: passes over the prompts.
        advance: called after each prompt, for a progress bar.

    Returns:
        A `Comparison` for each contender, and whether all outputs were the same, token for token.
    """

    def run(contender: Contender, prompt: Sequence[int]) -> GenerationOutput:
        contender.prepare()
        return contender.decoder.generate(prompt, max_new_tokens=max_new_tokens)

    for contender in contenders:  # first calls allocate and compile
        run(contender, prompts[0])
        contender.outputs.clear()
    for _ in range(repeats):
        for prompt in prompts:
            for contender in contenders:
                contender.outputs.append(run(contender, prompt))
            advance()
    expected = [output.token_ids for output in contenders[0].outputs]
    identical = all([output.token_ids for output in item.outputs] == expected for item in contenders)
    return [_sum_up(item, len(prompts)) for item in contenders], identical


def _sum_up(contender: Contender, num_prompts: int) -> Comparison:
    runs = [output.metrics for output in contender.outputs]
    total = merge(runs)
    rates = [merge(runs[i : i + num_prompts]).tokens_per_second for i in range(0, len(runs), num_prompts)]
    parts = {name: value for name, value in total.seconds_by_part.items() if name != "prefill"}
    per_round = {name: 1000 * value / max(1, total.num_spec_steps) for name, value in parts.items()}
    return Comparison(contender.name, total, per_round, min(rates), max(rates))


def render(rows: Sequence[Comparison], identical: bool) -> str:
    """The table that `radar bench` prints."""
    lines = [f"{'':14}{'tokens':>8}{'tokens/s':>10}{'acceptance':>12}{'draft calls':>13}   ms per round"]
    for row in rows:
        m = row.metrics
        parts = ", ".join(f"{name} {value:.2f}" for name, value in row.milliseconds_per_round.items())
        lines.append(
            f"{row.name:14}{m.num_tokens:>8}{m.tokens_per_second:>10.1f}{m.mean_acceptance_length:>12.2f}"
            f"{m.draft_calls_per_round:>13.2f}   {parts}"
        )
    lines += ["", "acceptance: tokens per target pass, the target's own included; draft calls: per round"]
    for row in rows:
        if row.metrics.num_draft_calls:
            lines += ["", f"draft calls per round, {row.name}:", *_histogram(row.metrics.stop_histogram)]
    lines += ["", f"outputs identical: {'yes' if identical else 'NO'}"]
    return "\n".join(lines)


def _histogram(counts: dict[int, int], width: int = 40) -> list[str]:
    most, total = max(counts.values()), sum(counts.values())
    return [
        f"  {n:>3}  {'#' * round(width * count / most):{width}} {count / total:6.1%}" for n, count in counts.items()
    ]
