"""Replay recorded rounds under a stop policy: how often would it draft, what would be accepted, how fast is that.

Where a round was recorded at every token, the policy goes from round to round as in decoding, along the recorded text.
Otherwise every recorded round counts once, whatever an earlier stop of this policy would have had accepted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.policy.base import FixedDepth, RoundSignals, StopPolicy, attach_signals
from radar.policy.lstm import PolicyNetwork
from radar.train.costs import CostTable
from radar.train.rounds import RoundDataset

__all__ = ["Replay", "followed", "replay", "replay_stops", "stops_of", "stops_of_network", "stops_of_policy"]


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
    if dataset.header.every_token:
        made = followed(stops, dataset)
        stops, dataset = stops[made], dataset.select(made)
    tokens = dataset.expected_accept().gather(1, stops[:, None] - 1).double() + 1
    time = costs.round_seconds(stops, dataset.position, dataset.header.tree)
    return Replay(
        rounds=len(dataset),
        draft_calls=stops.double().mean().item(),
        mean_acceptance_length=tokens.mean().item(),
        tokens_per_time=(tokens.sum() / time.sum()).item(),
        stop_histogram=tuple(torch.bincount(stops - 1, minlength=dataset.scores.shape[1]).tolist()),
    )


def followed(stops: Tensor, dataset: RoundDataset) -> Tensor:
    """Which rounds [N] bool decoding with these draft calls [N] makes: all, unless one begins at every token.

    The first of a prompt, then always the one behind the accepted tokens and the target's own.
    """
    if not dataset.header.every_token:
        return torch.ones_like(stops, dtype=torch.bool)
    gained = dataset.accept_lengths.gather(1, stops[:, None] - 1)[:, 0] + 1
    made = torch.zeros_like(stops, dtype=torch.bool)
    now, place = _beginnings(dataset)
    while len(now):
        made[now] = True
        now = _behind(now, gained[now], dataset, place)
    return made


def _beginnings(dataset: RoundDataset) -> tuple[Tensor, dict[tuple[int, int], int]]:
    """The first round of every prompt, and the rounds by (prompt, position). ValueError: a text has a gap."""
    place = {key: row for row, key in enumerate(zip(dataset.prompt.tolist(), dataset.position.tolist(), strict=True))}
    first: dict[int, int] = {}
    before = (-1, -1)
    for key in sorted(place):
        if key[0] != before[0]:
            first[key[0]] = place[key]
        elif key[1] != before[1] + 1:
            raise UsageError(
                f"replay: prompt {key[0]} has no round at position {before[1] + 1}, but one at {key[1]}: where a round "
                "begins at every token none may be left out, or the text would end there"
            )
        before = key
    return torch.tensor(sorted(first.values())), place


def _behind(now: Tensor, gained: Tensor, dataset: RoundDataset, place: dict[tuple[int, int], int]) -> Tensor:
    """The rounds that follow some others which gained so many tokens; texts that end there have none."""
    keys = zip(dataset.prompt[now].tolist(), (dataset.position[now] + gained).tolist(), strict=True)
    return torch.tensor([place[key] for key in keys if key in place], dtype=torch.int64)


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
    parts, device = [], next(network.parameters()).device
    for begin in range(0, len(dataset), batch_size):
        logits = network(dataset.scores[begin : begin + batch_size, :-1].to(device)).cpu()
        stop = logits.softmax(-1)[..., 0] > 0.5
        parts.append(torch.nn.functional.pad(stop, (0, 1), value=True).int().argmax(1) + 1)
    network.train(training)
    return torch.cat(parts)


@torch.no_grad()
def stops_of_policy(policy: StopPolicy, dataset: RoundDataset) -> Tensor:
    """Draft calls [N] of any policy. All rounds are one batch, unless it reads signals: then all prompts are one.

    The signal `accept_length` is what the policy's own stop would have had accepted in the round before: the recorded
    one, or, if one begins at every token, the one that the policy made. There, rounds that it does not make stop at 1.
    """
    if not hasattr(policy, "attach"):
        policy.bind(len(dataset), dataset.header.tree, dataset.scores.device)
        return _play(policy, dataset.scores)
    prompts, row = torch.unique(dataset.prompt, return_inverse=True)
    signals = RoundSignals(torch.full((len(prompts),), -1), torch.zeros(len(prompts), dtype=torch.int64))
    attach_signals(policy, signals)
    policy.bind(len(prompts), dataset.header.tree, dataset.scores.device)
    stops = torch.ones(len(dataset), dtype=torch.int64)
    scores = torch.zeros(len(prompts), *dataset.scores.shape[1:])

    def turn(now: Tensor) -> Tensor:
        """Play one round of some prompts; returns what they gained."""
        scores[row[now]] = dataset.scores[now]  # a prompt that has ended plays its last round again, unread
        signals.context_length[row[now]] = dataset.position[now]
        stops[now] = _play(policy, scores)[row[now]]
        accepted = dataset.accept_lengths[now].gather(1, stops[now][:, None] - 1)[:, 0]
        signals.accept_length[row[now]] = accepted
        return accepted + 1

    if dataset.header.every_token:
        now, place = _beginnings(dataset)
        while len(now):
            now = _behind(now, turn(now), dataset, place)
        return stops
    order = row.sort(stable=True).indices
    index = torch.arange(len(row)) - torch.searchsorted(row[order], row[order])  # 0, 1, ... within each prompt
    for number in range(int(index.max()) + 1):
        turn(order[index == number])
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
