"""Run decoders on the same prompts, interleaved, and say what each of them did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from radar.generation.base import Decoder
from radar.generation.sequence import GenerationOutput
from radar.metrics import DecodeMetrics, merge
from radar.tools.prompts import PromptLine, encode_prompt
from radar.tools.table import table
from radar.tools.texts import Text, decode_texts

__all__ = ["Comparison", "Contender", "compare", "render"]

PARTS = ("draft", "policy", "verify", "accept")  # of a round, in their order


@dataclass(frozen=True)
class Contender:
    """A decoder under a name. `prepare` runs before each generation: it sets the policy on a shared decoder."""

    name: str
    decoder: Decoder[Any]
    prepare: Callable[[], None] = lambda: None

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> GenerationOutput:
        self.prepare()
        return self.decoder.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)


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
    lines: Sequence[PromptLine],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    repeats: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[Comparison], list[Text]]:
    """Decode every turn of every prompt greedily with every contender in turn, `repeats` times after a warm-up.

    Args:
        contenders: the decoders; with `fallback=False`, as means over rounds leave plain steps out.
        lines: the prompts; the first contender's answers stand before their later turns.
        tokenizer: of the target.
        max_new_tokens: limit of each output.
        repeats: passes over the prompts.
        advance: called after each prompt, for a progress bar.

    Returns:
        A `Comparison` for each contender, and the texts of all repeats.
    """
    runs: dict[str, list[list[DecodeMetrics]]] = {contender.name: [] for contender in contenders}

    def decode_with(contender: Contender) -> Callable[[list[int]], list[int]]:
        def decode(prompt: list[int]) -> list[int]:
            output = contender.run(prompt, max_new_tokens)
            runs[contender.name][-1].append(output.metrics)
            return output.token_ids

        return decode

    first = encode_prompt(lines[0], tokenizer)
    for contender in contenders:  # first calls allocate and compile
        contender.run(first, max_new_tokens)
    texts: list[Text] = []
    decoders = {contender.name: decode_with(contender) for contender in contenders}
    for _ in range(repeats):
        for of_repeats in runs.values():
            of_repeats.append([])
        texts += decode_texts(decoders, lines, tokenizer, advance)
    return [_sum_up(name, of_repeats) for name, of_repeats in runs.items()], texts


def _sum_up(name: str, repeats: Sequence[Sequence[DecodeMetrics]]) -> Comparison:
    total = merge([run for runs in repeats for run in runs])
    rates = [merge(runs).tokens_per_second for runs in repeats]
    parts = {part: value for part, value in total.seconds_by_part.items() if part != "prefill"}
    per_round = {part: 1000 * value / max(1, total.num_spec_steps) for part, value in parts.items()}
    return Comparison(name, total, per_round, min(rates), max(rates))


def render(rows: Sequence[Comparison], *, with_parts: bool = True) -> str:
    """The tables that `radar bench` prints; speeds are relative to the first row's.

    `with_parts` shows the wall time of a round's parts: on a GPU those are launch times, which mean little.
    """
    base = rows[0].metrics.tokens_per_second
    speeds = [
        [
            row.name,
            f"{row.metrics.tokens_per_second:.1f}",
            f"{row.slowest:.1f} to {row.fastest:.1f}",
            f"{row.metrics.tokens_per_second / base:.2f} x",
            row.metrics.num_tokens,
            f"{row.metrics.mean_acceptance_length:.2f}",
            f"{row.metrics.draft_calls_per_round:.2f}",
        ]
        for row in rows
    ]
    headers = [
        "decoder",
        "tokens/s",
        "by repeat",
        "speed-up",
        "tokens",
        "tokens per target pass",
        "draft calls per round",
    ]
    tables = [table(headers, speeds)]
    parts = [part for part in PARTS if any(part in row.milliseconds_per_round for row in rows)]
    if parts and with_parts:
        times = [[row.name, *(_milliseconds(row, part) for part in parts)] for row in rows]
        tables.append(table(["time of a round [ms]", *parts], times))
    drafting = [row for row in rows if row.metrics.num_draft_calls]
    stops = sorted({calls for row in drafting for calls in row.metrics.stop_histogram})
    if stops:
        shares = [[calls, *(f"{_share(row, calls):.1%}" for row in drafting)] for calls in stops]
        tables.append(table(["rounds by draft calls", *(row.name for row in drafting)], shares))
    return "\n\n".join(tables)


def _milliseconds(row: Comparison, part: str) -> str:
    value = row.milliseconds_per_round.get(part)
    return "" if value is None else f"{value:.2f}"


def _share(row: Comparison, calls: int) -> float:
    histogram = row.metrics.stop_histogram
    return histogram.get(calls, 0) / sum(histogram.values())
