"""What a generation did and where its time went: one record a round, and their summary."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["DecodeMetrics", "Round", "Stopwatch", "Tally", "TokenLogprob", "merge", "summarize"]


class TokenLogprob(NamedTuple):
    """A token's natural log-probability, and the likeliest tokens in its place with theirs, the likeliest first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Round:
    """One target pass and the draft calls before it.

    Attributes:
        tokens: token ids that the round adds to the output, in order.
        num_draft_calls: draft forwards; 0 in autoregressive decoding.
        accept_length: draft tokens accepted, the target's own next token excluded.
        is_prefill: the pass over the prompt, which yields the first token and counts in no average.
        seconds: wall time by part: `prefill`, `draft`, `policy`, `verify`, `accept`.
        num_draft_tokens: draft tokens that the target verified.
        is_fallback: a plain step, taken because drafting does not pay or to measure whether it does.
        num_prompt_tokens, num_reused_tokens: of the prompt's pass: its length, and how much the caches held already.
        is_host_processed: its scores went through processors on the host.
        logits, scores: [n, V] float32 of every token before and after those processors, where they were asked for.
        logprobs: of every token, where they were asked for: by the model alone, before anything that changes scores.
        finish_reason: of the last round: "stop" or "length".
    """

    tokens: list[int]
    num_draft_calls: int = 0
    accept_length: int = 0
    is_prefill: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    num_draft_tokens: int = 0
    is_fallback: bool = False
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    is_host_processed: bool = False
    logits: Tensor | None = None
    scores: Tensor | None = None
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class DecodeMetrics:
    """Summary of one generation or several. Field names follow vLLM's per-request metrics where those exist.

    Attributes:
        num_tokens: output tokens, the first one (from the prompt's pass) included.
        num_spec_steps: rounds: target passes after the prompt's, plain steps of the fallback left out.
        num_draft_calls: draft forwards in all.
        num_draft_tokens: draft tokens that the target verified, all branches of the trees.
        num_accepted_draft_tokens: accepted in all, before any cut at an end token or limit.
        mean_acceptance_length: tokens per round, the target's own token included; 1 without drafts.
        draft_acceptance_rate: accepted / verified draft tokens; a tree verifies alternatives, so it stays far below 1.
        acceptance_per_position: share of the rounds that accepted a draft token at depth 1, 2, ...
        draft_calls_per_round: mean.
        stop_histogram: rounds by number of draft calls.
        acceptance_histogram: rounds by accepted draft tokens.
        acceptance_histogram_by_draft_length: the same for each number of draft calls.
        num_prompt_tokens: of the prompts.
        num_reused_prompt_tokens: of those, tokens whose keys and values an earlier generation had left.
        num_fallback_tokens: tokens of plain steps, see `radar.engine.fallback`.
        num_host_processed_tokens: tokens whose scores went through processors on the host, outside of any graph.
        num_generations: generations summed up.
        seconds: wall time of the whole; where texts share rounds, since a row was free for it.
        tokens_per_second: num_tokens / seconds.
        seconds_by_part: where the time went; on a GPU the parts are launch times unless profiling.
        engine: which runner made the rounds.
    """

    num_tokens: int
    num_spec_steps: int
    num_draft_calls: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_per_position: tuple[float, ...]
    draft_calls_per_round: float
    stop_histogram: dict[int, int]
    acceptance_histogram: dict[int, int]
    acceptance_histogram_by_draft_length: dict[int, dict[int, int]]
    num_prompt_tokens: int
    num_reused_prompt_tokens: int
    num_fallback_tokens: int
    num_host_processed_tokens: int
    num_generations: int
    seconds: float
    tokens_per_second: float
    seconds_by_part: dict[str, float]
    engine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON; the histograms' keys become strings."""
        return json.dumps(self.to_dict())


class Tally:
    """A running total: rounds go in, a `DecodeMetrics` comes out.

    Attributes:
        num_generations, seconds: the caller adds to them.
    """

    def __init__(self) -> None:
        self.num_generations = 0
        self.seconds = 0.0
        self._counts: Counter[str] = Counter()
        self._rounds: Counter[tuple[int, int]] = Counter()  # (draft calls, accepted) -> rounds
        self._parts: Counter[str] = Counter()

    def add(self, item: Round) -> None:
        """Count a round."""
        self._parts.update(item.seconds)
        self._counts["tokens"] += len(item.tokens)
        self._counts["prompt"] += item.num_prompt_tokens
        self._counts["reused"] += item.num_reused_tokens
        self._counts["drafted"] += item.num_draft_tokens
        self._counts["fallback"] += len(item.tokens) if item.is_fallback else 0
        self._counts["processed"] += len(item.tokens) if item.is_host_processed else 0
        if not item.is_prefill and not item.is_fallback:
            self._rounds[item.num_draft_calls, item.accept_length] += 1

    def merge(self, other: DecodeMetrics) -> None:
        """Count everything that a summary holds."""
        self.num_generations += other.num_generations
        self.seconds += other.seconds
        self._parts.update(other.seconds_by_part)
        self._counts.update(
            tokens=other.num_tokens,
            prompt=other.num_prompt_tokens,
            reused=other.num_reused_prompt_tokens,
            drafted=other.num_draft_tokens,
            fallback=other.num_fallback_tokens,
            processed=other.num_host_processed_tokens,
        )
        for calls, histogram in other.acceptance_histogram_by_draft_length.items():
            self._rounds.update({(calls, accepted): rounds for accepted, rounds in histogram.items()})

    def summary(self, engine: str = "") -> DecodeMetrics:
        """What has been counted so far."""
        stops: Counter[int] = Counter()
        accepted: Counter[int] = Counter()
        by_calls: dict[int, dict[int, int]] = {}
        for (calls, length), rounds in sorted(self._rounds.items()):
            stops[calls] += rounds
            accepted[length] += rounds
            by_calls.setdefault(calls, {})[length] = rounds
        counts, steps = self._counts, stops.total()
        draft_calls = sum(number * rounds for number, rounds in stops.items())
        total_accepted = sum(number * rounds for number, rounds in accepted.items())
        deepest = max(accepted, default=0)
        reached = [sum(rounds for length, rounds in accepted.items() if length > d) for d in range(deepest)]
        return DecodeMetrics(
            num_tokens=counts["tokens"],
            num_spec_steps=steps,
            num_draft_calls=draft_calls,
            num_draft_tokens=counts["drafted"],
            num_accepted_draft_tokens=total_accepted,
            mean_acceptance_length=1 + total_accepted / steps if steps else 0.0,
            draft_acceptance_rate=total_accepted / counts["drafted"] if counts["drafted"] else 0.0,
            acceptance_per_position=tuple(rounds / steps for rounds in reached),
            draft_calls_per_round=draft_calls / steps if steps else 0.0,
            stop_histogram=dict(sorted(stops.items())),
            acceptance_histogram=dict(sorted(accepted.items())),
            acceptance_histogram_by_draft_length=by_calls,
            num_prompt_tokens=counts["prompt"],
            num_reused_prompt_tokens=counts["reused"],
            num_fallback_tokens=counts["fallback"],
            num_host_processed_tokens=counts["processed"],
            num_generations=self.num_generations,
            seconds=self.seconds,
            tokens_per_second=counts["tokens"] / self.seconds if self.seconds > 0 else 0.0,
            seconds_by_part=dict(self._parts),
            engine=engine,
        )


def summarize(rounds: Iterable[Round], seconds: float, engine: str = "", *, num_generations: int = 1) -> DecodeMetrics:
    """Sum up the rounds of one generation, or of several, that took `seconds` of wall time."""
    tally = Tally()
    tally.num_generations, tally.seconds = num_generations, seconds
    for item in rounds:
        tally.add(item)
    return tally.summary(engine)


def merge(many: Sequence[DecodeMetrics]) -> DecodeMetrics:
    """Sum up several generations: counts and times add, averages and rates are ratios of the sums."""
    tally = Tally()
    for item in many:
        tally.merge(item)
    return tally.summary(", ".join(sorted({item.engine for item in many})))


class Stopwatch:
    """Splits a round's wall time into parts. With `synchronize` it waits for the GPU at every lap, to profile."""

    def __init__(self, *, synchronize: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to `part`."""
        if self._synchronize:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
