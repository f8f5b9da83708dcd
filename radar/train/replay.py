"""Replay recorded rounds under a stop policy: how often would it draft, what would be accepted, how fast is that.

A round starts where it was recorded, whatever an earlier stop of this policy would have had accepted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from radar.policy.base import FixedDepth, RoundSignals, StopPolicy
from radar.policy.lstm import PolicyNetwork
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset

__all__ = ["Replay", "replay", "replay_stops", "stops_of", "stops_of_network", "stops_of_policy"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Means over rounds. `tokens_per_time` is sum of tokens / sum of times, in the unit of the cost table.

    Tokens are expectations where the distribution of accepted lengths was recorded.
    """

    rounds: int
    draft_calls: float
    mean_acceptance_length: float  # bonus included
    tokens_per_time: float
    stop_histogram: tuple[int, ...]  # rounds that stop after call 1 to max_calls

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, costs: CostTable) -> Replay:
    """Replay a network (deterministic decisions) or any policy of the protocol on `dataset`, up to its max_calls.

    A `FixedDepth` decides nothing and pays for no decision.
    """
    if isinstance(policy, FixedDepth):
        costs = costs.without_decisions()
    return replay_stops(stops_of(policy, dataset), dataset, costs)


def replay_stops(stops: Tensor, dataset: RoundDataset, costs: CostTable) -> Replay:
    """The figures for given numbers of draft calls [N], each from 1 to max_calls."""
    tokens = dataset.expected_accept().gather(1, stops[:, None] - 1).double() + 1
    time = costs.round_seconds(stops, dataset.position, dataset.header.tree)
    return Replay(
        rounds=len(dataset),
        draft_calls=stops.double().mean().item(),
        mean_acceptance_length=tokens.mean().item(),
        tokens_per_time=(tokens.sum() / time.sum()).item(),
        stop_histogram=tuple(torch.bincount(stops - 1, minlength=dataset.scores.shape[1]).tolist()),
    )


def stops_of(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset) -> Tensor:
    """Draft calls [N] of a network or a policy."""
    if isinstance(policy, PolicyNetwork):
        return stops_of_network(policy, dataset)
    return stops_of_policy(policy, dataset)


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
    """Draft calls [N] of any policy. All rounds are one batch, unless it reads signals: then all prompts are one.

    The signal `accept_length` is what the policy's own stop would have had accepted in the recorded round before.
    """
    attach = getattr(policy, "attach", None)
    if attach is None:
        policy.bind(len(dataset), dataset.header.tree, dataset.scores.device)
        return _play(policy, dataset.scores)
    prompts, row = torch.unique(dataset.prompt, return_inverse=True)
    signals = RoundSignals(torch.full((len(prompts),), -1), torch.zeros(len(prompts), dtype=torch.int64))
    attach(signals)
    policy.bind(len(prompts), dataset.header.tree, dataset.scores.device)
    stops = torch.zeros(len(dataset), dtype=torch.int64)
    order = row.sort(stable=True).indices
    turn = torch.arange(len(row)) - torch.searchsorted(row[order], row[order])  # 0, 1, ... within each prompt
    scores = torch.zeros(len(prompts), *dataset.scores.shape[1:])
    for index in range(int(turn.max()) + 1):
        now = order[turn == index]
        scores[row[now]] = dataset.scores[now]  # a prompt that has ended plays its last round again, unread
        signals.context_length[row[now]] = dataset.position[now]
        stops[now] = _play(policy, scores)[row[now]]
        signals.accept_length[row[now]] = dataset.accept_lengths[now].gather(1, stops[now][:, None] - 1)[:, 0]
    return stops


def _play(policy: StopPolicy, scores: Tensor) -> Tensor:
    """One round in every row of scores [B, T, k] -> draft calls [B]."""
    calls = scores.shape[1]
    policy.reset()
    stops = torch.full((len(scores),), calls)
    for call in range(1, calls):  # after the last call the engine stops whatever the policy says
        stop = policy.stop(scores[:, call - 1].contiguous())
        stops = torch.where(stop & (stops == calls), call, stops)
    return stops
