"""Thresholds by grid search: the value whose replay on a development split gives the most tokens per time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from radar.errors import UsageError
from radar.policy.base import FixedDepth, StopPolicy
from radar.train.costs import CostTable
from radar.train.replay import replay
from radar.train.rounds import RoundDataset

__all__ = ["Tuned", "tune", "tune_fixed_depth"]


class Tuned(NamedTuple):
    """The best value, its policy, and tokens per time of every value that was tried, in that order."""

    value: float
    policy: StopPolicy
    curve: dict[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether the best is the first or last that was tried: a better one may lie beyond it."""
        values = list(self.curve)
        return len(values) > 1 and self.value in (values[0], values[-1])


def tune(
    make: Callable[[float], StopPolicy], values: Sequence[float], dataset: RoundDataset, costs: CostTable
) -> Tuned:
    """Try every value on the rounds; of equals the first wins. ValueError: nothing to try."""
    if not values:
        raise UsageError("tune: no values given")
    curve = {value: replay(make(value), dataset, costs).tokens_per_time for value in values}
    best = max(curve, key=lambda value: curve[value])
    return Tuned(best, make(best), curve)


def tune_fixed_depth(dataset: RoundDataset, costs: CostTable) -> Tuned:
    """The best constant number of calls."""
    calls = range(1, dataset.header.tree.max_calls + 1)
    return tune(lambda value: FixedDepth(int(value)), calls, dataset, costs)
