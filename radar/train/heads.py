"""Fit the one-level networks of `radar.policy.baselines_heads` on recorded rounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from radar.policy.baselines_heads import LevelNetwork, LevelPolicy
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.objectives import decision_entropy, exact_loss, ratio_returns
from radar.train.tune import tune_fixed_depth

__all__ = ["train_acceptance_head", "train_level_policy"]

ACCEPTANCE_HIDDEN, LEVEL_HIDDEN = 64, 1024  # 1024: LTD's
REJECTED_WEIGHT = 6.0  # SpecDec++'s
BATCH, LEARNING_RATE = 256, 1e-3


def train_acceptance_head(dataset: RoundDataset, *, epochs: int = 10, seed: int = 0) -> LevelNetwork:
    """P(the target's path reaches this level | it reached the one above), from the levels where the outcome is known.

    A stop after call n shows whether the path reached level n: it did if n tokens were accepted.
    """
    scores, calls = dataset.scores, dataset.scores.shape[1]
    levels = torch.arange(1, calls + 1)
    reached = dataset.accept_lengths == levels  # [N, T]
    asked = torch.cat((torch.ones_like(reached[:, :1]), reached[:, :-1]), 1)  # the path was alive one level above
    call = levels.float().expand(len(scores), -1)

    def loss_of(network: LevelNetwork, index: Tensor) -> Tensor:
        label, known = reached[index].float(), asked[index].float()
        logits = network(scores[index], call[index], call[index])
        weight = known * torch.where(reached[index], 1.0, REJECTED_WEIGHT)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
        return loss / weight.sum().clamp(min=1.0)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LevelNetwork(scores.shape[-1], ACCEPTANCE_HIDDEN, context=False)
    _fit(network, len(dataset), lambda index, _: loss_of(network, index), epochs, seed)
    return network


def train_level_policy(
    dataset: RoundDataset, costs: CostTable, *, epochs: int = 10, entropy: float = 0.1, seed: int = 0
) -> LevelPolicy:
    """LTD's policy by the exact gradient of tokens - rate * time; the rate is the best fixed depth's.

    `entropy` falls to 0 over the epochs: without it a fresh policy may never stop.
    """
    accept, times = dataset.expected_accept(), costs.times(dataset.header.tree, dataset.position)
    returns = ratio_returns(accept, times, rate=max(tune_fixed_depth(dataset, costs).curve.values()))
    call = torch.arange(1.0, dataset.scores.shape[1]).expand(len(dataset), -1)
    context = dataset.position.float()[:, None].expand_as(call)

    def loss_of(network: LevelNetwork, index: Tensor, progress: float) -> Tensor:
        stop = network(dataset.scores[index, :-1], call[index], context[index])
        logits = torch.stack((stop, torch.zeros_like(stop)), -1)
        return exact_loss(logits, returns[index]) - entropy * (1 - progress) * decision_entropy(logits)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LevelNetwork(dataset.scores.shape[-1], LEVEL_HIDDEN, context=True)
    _fit(network, len(dataset), lambda index, progress: loss_of(network, index, progress), epochs, seed)
    return LevelPolicy(network)


def _fit(
    network: LevelNetwork, rounds: int, loss_of: Callable[[Tensor, float], Tensor], epochs: int, seed: int
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(rounds, generator=generator)
        for begin in range(0, rounds, BATCH):
            index = order[begin : begin + BATCH]
            optimizer.zero_grad()
            loss_of(index, epoch / epochs).backward()
            optimizer.step()
        schedule.step()
