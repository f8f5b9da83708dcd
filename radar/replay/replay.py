"""Replay recorded rounds under a stop policy: how often would it draft, what would be accepted, how fast is that.

Where a round was recorded at every token, the policy goes from round to round as in decoding, along the recorded text.
Otherwise every recorded round counts once, whatever an earlier stop of this policy would have had accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.policy.base import FixedDepth, RoundSignals, StopPolicy, attach_signals
from radar.policy.lstm import PolicyNetwork
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

__all__ = [
    *("Replay", "Tuned", "first_stop", "followed", "played", "replay", "replay_stops"),
    *("stops_of", "stops_of_network", "tune", "tune_fixed_depth"),
]


class Replay(NamedTuple):
    """Means over rounds. `tokens_per_time` is sum of tokens / sum of times, in the unit of the cost table.

    Tokens are expectations where the distribution of accepted lengths was recorded.
    """

    rounds: int
    draft_calls: float
    mean_acceptance_length: float  # bonus included
    tokens_per_time: float
    stop_histogram: tuple[int, ...]  # rounds that stop after call 1 to max_calls


class Tuned(NamedTuple):
    """A policy, and the value that tuning gave it (None if it has none).

    Attributes:
        at_edge: the value is the first or last that was tried: a better one may lie beyond it.
        curve: tokens per time of every value that was tried.
    """

    policy: StopPolicy
    value: float | None = None
    at_edge: bool = False
    curve: Mapping[float, float] = MappingProxyType({})


def tune(
    make: Callable[[float], StopPolicy], values: Sequence[float], dataset: RoundDataset, costs: CostTable
) -> Tuned:
    """Replay every value's policy; of equals the first is the best."""
    curve = {value: replay(make(value), dataset, costs).tokens_per_time for value in values}
    best = max(curve, key=lambda value: curve[value])
    return Tuned(make(best), best, len(values) > 1 and best in (values[0], values[-1]), curve)


def tune_fixed_depth(dataset: RoundDataset, costs: CostTable) -> Tuned:
    """The best constant number of calls."""
    calls = range(1, dataset.header.tree.max_calls + 1)
    best = tune(lambda value: FixedDepth(int(value)), calls, dataset, costs)
    return best._replace(at_edge=best.value == calls[-1])  # there is nothing below one call


def replay(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, costs: CostTable) -> Replay:
    """Replay a network (deterministic decisions) or any policy of the protocol on `dataset`, up to its max_calls.

    A `FixedDepth` decides nothing and pays for no decision.
    """
    if isinstance(policy, FixedDepth):
        costs = costs.without_decisions()
    return replay_stops(stops_of(policy, dataset), dataset, costs)


def replay_stops(stops: Tensor, dataset: RoundDataset, costs: CostTable, accept: Tensor | None = None) -> Replay:
    """The figures for given numbers of draft calls [N], each from 1 to max_calls. `accept`: see `played`."""
    made, tokens, seconds = played(stops, dataset, costs, accept)
    return Replay(
        rounds=int(made.sum()),
        draft_calls=stops[made].double().mean().item(),
        mean_acceptance_length=tokens[made].mean().item(),
        tokens_per_time=(tokens.sum() / seconds.sum()).item(),
        stop_histogram=tuple(torch.bincount(stops[made] - 1, minlength=dataset.scores.shape[1]).tolist()),
    )


def played(
    stops: Tensor, dataset: RoundDataset, costs: CostTable, accept: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rounds these draft calls [N] go through [N] bool, and their tokens and seconds [N] float64, 0 elsewhere.

    Args:
        accept: accepted tokens for every stop [N, T]; None: as expected.
    """
    made, accept = followed(stops, dataset), dataset.expected_accept() if accept is None else accept
    tokens = _gather(accept, stops).double() + 1
    return made, tokens * made, costs.round_seconds(stops, dataset.position, dataset.header.tree) * made


def followed(stops: Tensor, dataset: RoundDataset) -> Tensor:
    """Which rounds [N] bool decoding with these draft calls [N] makes: all, unless one begins at every token.

    The first of a prompt, then always the one behind the accepted tokens and the target's own.
    """
    if not dataset.header.every_token:
        return torch.ones_like(stops, dtype=torch.bool)
    gained = _gather(dataset.accept_lengths, stops) + 1
    return _walk(dataset, lambda rows: gained[rows])


def _gather(of_stops: Tensor, stops: Tensor) -> Tensor:
    """Of [N, T] for every stop, that of draft calls [N]."""
    return of_stops.gather(1, stops[:, None] - 1)[:, 0]


def _walk(dataset: RoundDataset, gains: Callable[[Tensor], Tensor]) -> Tensor:
    """Go through all texts at once, a round of each at a time; returns which rounds [N] were met.

    Args:
        gains: plays some rounds and returns their tokens, which say what comes next if one begins at every token.

    Raises ValueError: such a text has a gap.
    """
    order = dataset.position.sort(stable=True).indices
    order = order[dataset.prompt[order].sort(stable=True).indices]
    prompt, position = dataset.prompt[order], dataset.position[order]
    begins = torch.ones_like(prompt, dtype=torch.bool)
    begins[1:] = prompt.diff() != 0
    if dataset.header.every_token and (gap := (position.diff() != 1) & ~begins[1:]).any():
        last = int(gap.int().argmax())
        raise UsageError(
            f"replay: prompt {int(prompt[last])} has no round at position {int(position[last]) + 1}, but one at "
            f"{int(position[last + 1])}: where a round begins at every token none may be left out, or the text would "
            "end there"
        )
    made, now = torch.zeros_like(begins), begins.nonzero()[:, 0]
    while len(now):
        made[order[now]] = True
        gained = gains(order[now])
        then = now + (gained if dataset.header.every_token else 1)
        inside = then < len(order)
        now, then = now[inside], then[inside]
        now = then[prompt[then] == prompt[now]]
    return made


def first_stop(flags: Tensor) -> Tensor:
    """Stop flags after call 1 to T - 1 [N, T - 1] -> draft calls [N], T where none is set."""
    return torch.nn.functional.pad(flags, (0, 1), value=True).int().argmax(1) + 1


@torch.no_grad()
def stops_of_network(network: PolicyNetwork, dataset: RoundDataset, *, batch_size: int = 4096) -> Tensor:
    """Draft calls [N] when the network stops at P(stop) > 1/2, as `RadarPolicy` does."""
    if dataset.scores.shape[1] == 1:
        return torch.ones(len(dataset), dtype=torch.int64)
    training, device = network.training, next(network.parameters()).device
    network.eval()
    logits = [network(part.to(device)).cpu() for part in dataset.scores[:, :-1].split(batch_size)]
    network.train(training)
    return first_stop(torch.cat(logits).softmax(-1)[..., 0] > 0.5)


@torch.no_grad()
def stops_of(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset) -> Tensor:
    """Draft calls [N] of a network or a policy.

    All rounds are one batch, unless the policy reads signals: then all prompts are one. The signal `accept_length` is
    what the policy's own stop would have had accepted in the round before: the recorded one, or, if one begins at every
    token, the one that the policy made. There, rounds that it does not make stop at 1.
    """
    if isinstance(policy, PolicyNetwork):
        return stops_of_network(policy, dataset)
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
        scores[row[now]] = dataset.scores[now]  # a prompt that has ended plays its last round again, unread
        signals.context_length[row[now]] = dataset.position[now]
        stops[now] = _play(policy, scores)[row[now]]
        signals.accept_length[row[now]] = accepted = _gather(dataset.accept_lengths[now], stops[now])
        return accepted + 1

    _walk(dataset, turn)
    return stops


def _play(policy: StopPolicy, scores: Tensor) -> Tensor:
    """One round in every row of scores [B, T, k] -> draft calls [B]."""
    policy.reset()
    flags = torch.zeros(len(scores), scores.shape[1] - 1, dtype=torch.bool)
    for call, level in enumerate(scores[:, :-1].unbind(1)):  # after the last call the engine stops whatever it says
        flags[:, call] = policy.stop(level.contiguous())
    return first_stop(flags)
