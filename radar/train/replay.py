"""Replay recorded rounds under a stop policy: how often would it draft, what would be accepted, how fast is that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from radar.policy.base import StopPolicy
from radar.policy.lstm import PolicyNetwork
from radar.train.dataset import RoundDataset
from radar.train.objectives import CostTable

__all__ = ["Replay", "replay", "replay_stops", "stops_of_network", "stops_of_policy"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Means over rounds. `tokens_per_time` is sum of tokens / sum of times, in the unit of the cost table."""

    rounds: int
    draft_calls: float
    mean_acceptance_length: float  # bonus included
    tokens_per_time: float
    stop_histogram: tuple[int, ...]  # rounds that stop after call 1 to max_calls

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, costs: CostTable) -> Replay:
    """Replay a network (deterministic decisions) or any policy of the protocol on `dataset`, up to its max_calls."""
    if isinstance(policy, PolicyNetwork):
        return replay_stops(stops_of_network(policy, dataset), dataset, costs)
    return replay_stops(stops_of_policy(policy, dataset), dataset, costs)


def replay_stops(stops: Tensor, dataset: RoundDataset, costs: CostTable) -> Replay:
    """The figures for given numbers of draft calls [N], each from 1 to max_calls."""
    calls = dataset.accept_lengths.shape[1]
    tokens = dataset.accept_lengths.gather(1, stops[:, None] - 1).double() + 1
    time = costs.times(calls).double()[stops - 1]
    return Replay(
        rounds=len(dataset),
        draft_calls=stops.double().mean().item(),
        mean_acceptance_length=tokens.mean().item(),
        tokens_per_time=(tokens.sum() / time.sum()).item(),
        stop_histogram=tuple(torch.bincount(stops - 1, minlength=calls).tolist()),
    )


@torch.no_grad()
def stops_of_network(network: PolicyNetwork, dataset: RoundDataset, *, batch_size: int = 4096) -> Tensor:
    """Draft calls [N] when the network stops at P(stop) > 1/2, as `RadarPolicy` does."""
    if dataset.scores.shape[1] == 1:
        return torch.ones(len(dataset), dtype=torch.int64)
    training = network.training
    network.eval()
    parts = []
    for begin in range(0, len(dataset), batch_size):
        logits = network(dataset.scores[begin : begin + batch_size, :-1])
        stop = logits.softmax(-1)[..., 0] > 0.5
        parts.append(torch.nn.functional.pad(stop, (0, 1), value=True).int().argmax(1) + 1)
    network.train(training)
    return torch.cat(parts)


@torch.no_grad()
def stops_of_policy(policy: StopPolicy, dataset: RoundDataset) -> Tensor:
    """Draft calls [N] of any policy: all rounds are one batch of the protocol."""
    rounds, calls, _ = dataset.scores.shape
    policy.bind(rounds, dataset.header.tree, dataset.scores.device)
    policy.reset()
    stops = torch.full((rounds,), calls)
    for call in range(1, calls):  # after the last call the engine stops whatever the policy says
        stop = policy.stop(dataset.scores[:, call - 1].contiguous())
        stops = torch.where(stop & (stops == calls), call, stops)
    return stops
