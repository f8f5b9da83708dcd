"""What one more draft call is expected to add, as a function of the beam's mass: the calibration of `ExpectedGain`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radar.policy.baselines import ExpectedGain
from radar.train.dataset import RoundDataset

__all__ = ["GainCurve", "expected_gain", "fit_gain_curves", "isotonic"]


class GainCurve:
    """Expected extra tokens of the next call: a step function of the beam's summed probability that never falls.

    Attributes:
        mass, gain: [M] ascending; from mass[i] up to mass[i + 1] the next call adds gain[i].
    """

    def __init__(self, mass: Tensor, gain: Tensor) -> None:
        self.mass, self.gain = mass, gain

    def bound(self, price: float) -> float:
        """The mass from which on another call adds more than `price` tokens; infinity if none does."""
        pays = int((self.gain <= price).sum())
        if pays == 0:
            return 0.0
        return float(self.mass[pays]) if pays < len(self.mass) else float("inf")


def fit_gain_curves(dataset: RoundDataset) -> list[GainCurve]:
    """One curve for the decision after call 1 to T - 1, by isotonic regression over all rounds."""
    accept, mass = dataset.expected_accept(), dataset.scores.exp().sum(-1)
    curves = []
    for call in range(accept.shape[1] - 1):
        order = mass[:, call].sort().indices
        fitted = isotonic((accept[:, call + 1] - accept[:, call])[order].double().tolist())
        level = torch.tensor(fitted)
        first = torch.cat((torch.ones(1, dtype=torch.bool), level[1:] > level[:-1]))
        curves.append(GainCurve(mass[order, call][first], level[first]))
    return curves


def expected_gain(curves: Sequence[GainCurve], price: float) -> ExpectedGain:
    """The rule at a price in tokens per call."""
    return ExpectedGain([curve.bound(price) for curve in curves])


def isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in squared distance (pool adjacent violators)."""
    blocks: list[list[float]] = []  # mean, count
    for value in values:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            left = blocks[-1]
            left[0] = (left[0] * left[1] + mean * count) / (left[1] + count)
            left[1] += count
    return [mean for mean, count in blocks for _ in range(int(count))]
