"""What a generation did and where its time went: one record a round, and their summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["DecodeMetrics", "Round", "Stopwatch", "merge", "summarize"]


@dataclass
class Round:
    """One target pass and the draft calls before it.

    Attributes:
        tokens: token ids that the round adds to the output, in order.
        num_draft_calls: draft forwards; 0 in autoregressive decoding.
        accept_length: draft tokens accepted, the target's own next token excluded.
        is_prefill: the pass over the prompt, which yields the first token and counts in no average.
        seconds: wall time by part: `prefill`, `draft`, `policy`, `verify`, `accept`.
    """

    tokens: list[int]
    num_draft_calls: int = 0
    accept_length: int = 0
    is_prefill: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodeMetrics:
    """Summary of a generation. Field names follow vLLM's per-request metrics where those exist.

    Attributes:
        num_tokens: output tokens, the first one (from the prompt's pass) included.
        num_spec_steps: rounds: target passes after the prompt's.
        num_draft_calls: draft forwards in all.
        num_accepted_draft_tokens: accepted in all, before any cut at an end token or limit.
        mean_acceptance_length: tokens per target pass, the target's own token included; 1 without drafts.
        draft_calls_per_round: mean.
        stop_histogram: rounds by number of draft calls.
        acceptance_histogram: rounds by accepted draft tokens.
        seconds: wall time of the whole generation.
        tokens_per_second: num_tokens / seconds.
        seconds_by_part: where the time went; on a GPU the parts are launch times unless profiling.
        engine: which runner made the rounds.
    """

    num_tokens: int
    num_spec_steps: int
    num_draft_calls: int
    num_accepted_draft_tokens: int
    mean_acceptance_length: float
    draft_calls_per_round: float
    stop_histogram: dict[int, int]
    acceptance_histogram: dict[int, int]
    seconds: float
    tokens_per_second: float
    seconds_by_part: dict[str, float]
    engine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(rounds: Iterable[Round], seconds: float, engine: str = "") -> DecodeMetrics:
    """Sum up the rounds of one generation that took `seconds` of wall time."""
    rounds = list(rounds)
    steps = [item for item in rounds if not item.is_prefill]
    parts: Counter[str] = Counter()
    for item in rounds:
        parts.update(item.seconds)
    return _build(
        num_tokens=sum(len(item.tokens) for item in rounds),
        stops=Counter(item.num_draft_calls for item in steps),
        accepted=Counter(item.accept_length for item in steps),
        seconds=seconds,
        parts=parts,
        engine=engine,
    )


def merge(many: Sequence[DecodeMetrics]) -> DecodeMetrics:
    """Sum up several generations: counts and times add, averages and rates are ratios of the sums."""
    stops: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    parts: Counter[str] = Counter()
    for item in many:
        stops.update(item.stop_histogram)
        accepted.update(item.acceptance_histogram)
        parts.update(item.seconds_by_part)
    return _build(
        num_tokens=sum(item.num_tokens for item in many),
        stops=stops,
        accepted=accepted,
        seconds=sum(item.seconds for item in many),
        parts=parts,
        engine=", ".join(sorted({item.engine for item in many})),
    )


def _build(
    *,
    num_tokens: int,
    stops: Counter[int],
    accepted: Counter[int],
    seconds: float,
    parts: Mapping[str, float],
    engine: str,
) -> DecodeMetrics:
    count = stops.total()
    calls = sum(number * times for number, times in stops.items())
    drafts = sum(number * times for number, times in accepted.items())
    return DecodeMetrics(
        num_tokens=num_tokens,
        num_spec_steps=count,
        num_draft_calls=calls,
        num_accepted_draft_tokens=drafts,
        mean_acceptance_length=1 + drafts / count if count else 0.0,
        draft_calls_per_round=calls / count if count else 0.0,
        stop_histogram=dict(sorted(stops.items())),
        acceptance_histogram=dict(sorted(accepted.items())),
        seconds=seconds,
        tokens_per_second=num_tokens / seconds if seconds > 0 else 0.0,
        seconds_by_part=dict(parts),
        engine=engine,
    )


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
