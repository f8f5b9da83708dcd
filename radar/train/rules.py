"""What rules of the literature learn from recorded rounds: SpecDec++'s head, LTD's policy, what another call adds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from radar.policy.baselines import ExpectedGain
from radar.policy.baselines_heads import LevelNetwork, LevelPolicy
from radar.train.costs import CostTable
from radar.train.objectives import decision_entropy, exact_loss, ratio_returns
from radar.train.replay import first_stop, replay_stops
from radar.train.rounds import RoundDataset
from radar.train.tune import tune_fixed_depth

__all__ = ["expected_gain", "fit_gain_curves", "isotonic", "train_acceptance_head", "train_level_policy"]

ACCEPTANCE_HIDDEN, LEVEL_HIDDEN = 64, 1024  # 1024: LTD's
REJECTED_WEIGHT = 6.0  # SpecDec++'s
BATCH, LEARNING_RATE = 256, 1e-3


def fit_gain_curves(dataset: RoundDataset) -> list[tuple[Tensor, Tensor]]:
    """(mass, gain) for the decision after call 1 to T - 1, both ascending: from mass[i] up to mass[i + 1] of the beam's
    summed probability the next call adds gain[i] tokens. Isotonic regression over all rounds."""
    accept, mass = dataset.expected_accept(), dataset.scores.exp().sum(-1)
    curves = []
    for call in range(accept.shape[1] - 1):
        order = mass[:, call].sort().indices
        level = torch.tensor(isotonic((accept[:, call + 1] - accept[:, call])[order].double().tolist()))
        first = torch.cat((torch.ones(1, dtype=torch.bool), level[1:] > level[:-1]))
        curves.append((mass[order, call][first], level[first]))
    return curves


def expected_gain(curves: Sequence[tuple[Tensor, Tensor]], price: float) -> ExpectedGain:
    """The rule at a price in tokens per call: go on where the next one adds more."""
    bounds = []
    for mass, gain in curves:
        pays = int((gain <= price).sum())  # from this step on
        bounds.append(0.0 if pays == 0 else float(mass[pays]) if pays < len(mass) else float("inf"))
    return ExpectedGain(bounds)


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


def train_acceptance_head(dataset: RoundDataset, *, epochs: int = 80, seed: int = 0) -> LevelNetwork:
    """P(the target's path reaches this level | it reached the one above), from the levels where the outcome is known.

    A stop after call n shows whether the path reached level n: it did if n tokens were accepted.
    """
    scores, calls = dataset.scores, dataset.scores.shape[1]
    levels = torch.arange(1, calls + 1)
    reached = dataset.accept_lengths == levels  # [N, T]
    asked = torch.cat((torch.ones_like(reached[:, :1]), reached[:, :-1]), 1)  # the path was alive one level above
    call = levels.float().expand(len(scores), -1)
    network = _fresh(scores.shape[-1], ACCEPTANCE_HIDDEN, context=False, seed=seed)
    fit = _Fit(network, epochs, seed)
    for _ in range(epochs):
        for index in fit.batches(len(scores)):
            label, known = reached[index].float(), asked[index].float()
            logits = network(scores[index], call[index], call[index])
            weight = known * torch.where(reached[index], 1.0, REJECTED_WEIGHT)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
            fit.step(loss / weight.sum().clamp(min=1.0))
    return network


def train_level_policy(
    train: RoundDataset,
    develop: RoundDataset,
    costs: CostTable,
    *,
    epochs: int = 80,
    entropy: float = 0.1,
    seed: int = 0,
) -> LevelPolicy:
    """LTD's policy by the exact gradient of tokens - rate * time, of the epoch that is fastest on `develop`.

    The rate is the throughput reached so far, from the best fixed depth's on. `entropy` falls to 0 over the epochs:
    without it a fresh policy may never stop.
    """
    accept, times = train.expected_accept(), costs.times(train.header.tree, train.position)
    rate = max(tune_fixed_depth(train, costs).curve.values())
    network = _fresh(train.scores.shape[-1], LEVEL_HIDDEN, context=True, seed=seed)
    fit, best, kept = _Fit(network, epochs, seed), 0.0, network
    for epoch in range(epochs):
        returns = ratio_returns(accept, times, rate=rate)
        for index in fit.batches(len(train)):
            stop = _logits(network, train.scores[index], train.position[index])
            logits = torch.stack((stop, torch.zeros_like(stop)), -1)
            bonus = entropy * (1 - epoch / epochs) * decision_entropy(logits)
            fit.step(exact_loss(logits, returns[index]) - bonus)
        rate = max(rate, _speed(network, train, costs))
        if (speed := _speed(network, develop, costs)) > best:
            best, kept = speed, copy.deepcopy(network)
    return LevelPolicy(kept)


def _logits(network: LevelNetwork, scores: Tensor, context: Tensor) -> Tensor:
    """Of the decisions after call 1 to T - 1, for scores [N, T, k] and context lengths [N]."""
    call = torch.arange(1.0, scores.shape[1]).expand(len(scores), -1)
    logits: Tensor = network(scores[:, :-1], call, context.float()[:, None].expand_as(call))
    return logits


@torch.no_grad()
def _speed(network: LevelNetwork, data: RoundDataset, costs: CostTable) -> float:
    """Tokens per time of `LevelPolicy`, for all rounds at once."""
    stops = first_stop(_logits(network, data.scores, data.position) > 0)
    return replay_stops(stops, data, costs).tokens_per_time


def _fresh(width: int, hidden: int, *, context: bool, seed: int) -> LevelNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LevelNetwork(width, hidden, context=context)


class _Fit:
    """Adam under a cosine over the epochs."""

    def __init__(self, network: nn.Module, epochs: int, seed: int) -> None:
        self._optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, epochs)
        self._generator = torch.Generator().manual_seed(seed)

    def batches(self, rounds: int) -> Iterator[Tensor]:
        """Indices of one epoch."""
        yield from torch.randperm(rounds, generator=self._generator).split(BATCH)
        self._schedule.step()

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
