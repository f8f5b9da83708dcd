"""Optimal stopping by backward induction: the upper reference of what a policy's features allow.

Longstaff and Schwartz's method for E[tokens - rate * time]: from the last decision to the first, regress what going on
turned out to be worth on the features, and stop where that is not positive. The rate moves to the throughput reached.
The regression is linear on random ReLU features (ridge, closed form): flexible, without a seed's luck in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.replay import replay_stops
from radar.train.tune import tune_fixed_depth

__all__ = ["BackwardInduction", "fit_backward", "level_features"]

HIDDEN, RIDGE, MOST_PASSES, TOLERANCE = 256, 1e-2, 6, 1e-4


def level_features(dataset: RoundDataset) -> Tensor:
    """What is known after each call [N, T, F] float64: the beam's scores of this level and the one before, its summed
    probability and that sum's ratio, the best nodes' probabilities, context length, and the signals if recorded."""
    scores = dataset.scores.double().clamp(min=-25.0)
    before = torch.cat((torch.zeros_like(scores[:, :1]), scores[:, :-1]), 1)
    mass = scores.exp().sum(-1)
    mass_before = torch.cat((torch.ones_like(mass[:, :1]), mass[:, :-1]), 1)
    parts = [
        scores / 5,
        before / 5,
        scores[..., :2].exp(),
        mass[..., None],
        (mass / mass_before.clamp(min=1e-6))[..., None],
    ]
    flat = [dataset.position.double() / 1000]
    if (signals := dataset.signals) is not None:
        expected = signals.expected_lengths.double()
        growth = torch.diff(expected, dim=1, prepend=torch.zeros_like(expected[:, :1]))
        parts += [expected[..., None], growth[..., None]]
        last = signals.last_accept_length.double()
        if dataset.header.every_token:  # it depends on the policy: unknown
            last = torch.full_like(last, torch.nan)
        flat += [last, signals.target_entropy.double()]
    parts += [one[:, None, None].expand(-1, scores.shape[1], 1) for one in flat]
    return torch.cat(parts, -1)


@dataclass(frozen=True)
class BackwardInduction:
    """A fitted stopping rule.

    Attributes:
        rate: tokens per time that it reached on the rounds it was fitted to.
        center, scale: [F] of the features; projection [F + 1, HIDDEN].
        weights: [T - 1, 1 + F + HIDDEN] one regression for every decision.
    """

    rate: float
    center: Tensor
    scale: Tensor
    projection: Tensor
    weights: Tensor

    def stops(self, dataset: RoundDataset) -> Tensor:
        """Draft calls [N]."""
        features = level_features(dataset)
        stop = torch.ones(features.shape[:2], dtype=torch.bool)  # the last one is forced
        for t, weights in enumerate(self.weights):
            stop[:, t] = _design(features[:, t], self.center, self.scale, self.projection) @ weights <= 0
        return stop.int().argmax(1) + 1


def fit_backward(dataset: RoundDataset, costs: CostTable, *, seed: int = 0) -> BackwardInduction:
    """Fit on rounds of at least two draft calls; judge on others, it fits what it saw a little too well."""
    features = level_features(dataset)[:, :-1]
    center, scale = (x.nan_to_num(nan=0.0) for x in (features.mean((0, 1)), features.std((0, 1))))
    scale = scale.clamp(min=1e-6)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(len(center) + 1, HIDDEN, generator=generator, dtype=torch.float64) / len(center) ** 0.5
    accept, times = dataset.expected_accept().double(), costs.times(dataset.header.tree, dataset.position)
    grams = [_factor(_design(features[:, t], center, scale, projection)) for t in range(features.shape[1])]
    rate = max(tune_fixed_depth(dataset, costs).curve.values())
    best: BackwardInduction | None = None
    for _ in range(MOST_PASSES):
        value = accept - rate * times
        worth = value[:, -1]
        weights = []
        for t in range(len(grams) - 1, -1, -1):
            design = _design(features[:, t], center, scale, projection)
            target = design.mT @ (worth - value[:, t]) / len(design)
            weights.append(torch.cholesky_solve(target[:, None], grams[t])[:, 0])
            # what going on did bring, not what the fit promised: a fit that is too high cannot feed itself
            worth = torch.where(design @ weights[-1] > 0, worth, value[:, t])
        fit = BackwardInduction(rate, center, scale, projection, torch.stack(weights[::-1]))
        reached = replay_stops(fit.stops(dataset), dataset, costs).tokens_per_time
        if best is None or reached > best.rate:
            best = BackwardInduction(reached, center, scale, projection, fit.weights)
        if abs(reached / rate - 1) < TOLERANCE:
            break
        rate = reached
    assert best is not None
    return best


def _design(features: Tensor, center: Tensor, scale: Tensor, projection: Tensor) -> Tensor:
    x = ((features - center) / scale).clamp(-5.0, 5.0).nan_to_num(nan=0.0)  # unknown: like the mean
    one = torch.ones_like(x[..., :1])
    x = torch.cat((one, x), -1)
    return torch.cat((x, (x @ projection).relu()), -1)


def _factor(design: Tensor) -> Tensor:
    """Cholesky factor of the ridge regression's normal matrix."""
    gram = design.mT @ design / len(design)
    factor: Tensor = torch.linalg.cholesky(gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype))
    return factor
