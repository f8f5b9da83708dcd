"""Ratios of speeds with their intervals: sums over texts, geometric means over cells, prompts drawn anew.

A run is one generation, as `bench.runs` reads it. Cells that decode the same prompts (one task, several pairs) are not
independent: a prompt that suits one pair suits the others. So a task's prompts are drawn once for all of its cells.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "bounded", "over", "ratios"]

RESAMPLES = 2000
BOUNDS = (0.025, 0.975)
Run = Mapping[str, Any]


class Interval(NamedTuple):
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float


def over(cells: Sequence[Sequence[Run]], method: str, reference: str, *, seed: int = 0) -> Interval:
    """Speed of a method over another's: the geometric mean over cells of ratios of sums.

    The interval is by paired bootstrap. A resample draws as many prompts as a task has, with both methods and all
    pairs that decoded them. One that leaves some cell without a text says nothing and is left out.

    Args:
        cells: runs of one pair and task each, both methods among them.
        seed: of the resampling.
    """
    value, draws = ratios(cells, method, reference, seed=seed)
    return bounded(value, draws)


def bounded(value: float, draws: Tensor) -> Interval:
    """A figure with the interval of its resamples; those that are not numbers are left out."""
    return Interval(value, *torch.nanquantile(draws, torch.tensor(BOUNDS, dtype=torch.float64)).tolist())


def ratios(cells: Sequence[Sequence[Run]], method: str, reference: str, *, seed: int = 0) -> tuple[float, Tensor]:
    """The value of `over`, and that of every resample [RESAMPLES] float64: of the same prompts for the same seed."""
    weights = _draws(cells, seed)
    logarithms, draws = 0.0, torch.zeros(RESAMPLES, dtype=torch.float64)
    for runs in cells:
        columns, weight = weights[runs[0]["task"]]
        speeds, resampled = [], []
        for name in (method, reference):
            tokens, seconds = _sums(runs, name, columns)
            speeds.append((tokens.sum() / seconds.sum()).item())
            resampled.append((weight @ tokens) / (weight @ seconds))
        logarithms += math.log(speeds[0] / speeds[1])
        draws += (resampled[0] / resampled[1]).log()
    return math.exp(logarithms / len(cells)), (draws / len(cells)).exp()


def _draws(cells: Sequence[Sequence[Run]], seed: int) -> dict[str, tuple[dict[Any, int], Tensor]]:
    """By task: its prompts' columns, and how often each resample holds each of them [RESAMPLES, prompts]."""
    prompts: dict[str, set[Any]] = defaultdict(set)
    for runs in cells:
        prompts[runs[0]["task"]] |= {run["prompt"] for run in runs}
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for task, found in sorted(prompts.items()):
        picked = torch.randint(len(found), (RESAMPLES, len(found)), generator=generator)
        weight = torch.zeros(picked.shape, dtype=torch.float64)
        weight.scatter_add_(1, picked, torch.ones_like(weight))
        drawn[task] = {prompt: column for column, prompt in enumerate(sorted(found))}, weight
    return drawn


def _sums(runs: Sequence[Run], method: str, columns: Mapping[Any, int]) -> tuple[Tensor, Tensor]:
    """(tokens [P], seconds [P]) of a method by prompt."""
    tokens, seconds = [0.0] * len(columns), [0.0] * len(columns)
    for run in runs:
        if run["method"] == method:
            tokens[columns[run["prompt"]]] += run["tokens"]
            seconds[columns[run["prompt"]]] += run["seconds"]
    return torch.tensor(tokens, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
