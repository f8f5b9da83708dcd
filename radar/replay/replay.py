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
from radar.policy.base import FixedDepth, RoundSignals, StopPolicy, attach_signals, nodes_of_policy
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork
from radar.replay.ends import Ends, at_calls, priced
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

__all__ = [
    *("Replay", "Tuned", "costs_for", "ends_of", "first_stop", "followed", "played", "replay", "replay_ends"),
    *("mass_of", "tune", "tune_fixed", "tune_fixed_depth"),
]

BATCH = 4096  # rounds that a network reads at once


class Replay(NamedTuple):
    """Means over rounds; `nodes` are those verified, the root included. `tokens_per_time` is sum of tokens / sum of
    times, in the unit of the cost table.

    Tokens are expectations where the distribution of accepted lengths was recorded.
    """

    rounds: int
    draft_calls: float
    nodes: float
    mean_acceptance_length: float  # bonus included
    tokens_per_time: float
    stop_histogram: tuple[int, ...]  # rounds that stop after call 1 to max_calls
    node_histogram: Mapping[int, int]  # rounds by their number of verified nodes


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


def tune_fixed(dataset: RoundDataset, costs: CostTable) -> Tuned:
    """The best constant number of calls and, where several were recorded and have prices, of nodes; the value and the
    curve are those of the calls."""
    tree, best = dataset.header.tree, tune_fixed_depth(dataset, costs)
    calls = range(1, tree.max_calls + 1)
    for nodes in [dataset.header.nodes[at] for at in priced(dataset, costs)]:
        if nodes != tree.total_tokens:
            found = tune(lambda n, nodes=nodes: NodesByMass(FixedDepth(int(n)), [nodes], [0.0]), calls, dataset, costs)  # type: ignore[misc]
            best = max(best, found._replace(at_edge=found.value == calls[-1]), key=lambda one: max(one.curve.values()))
    return best


def tune_fixed_depth(dataset: RoundDataset, costs: CostTable) -> Tuned:
    """The best constant number of calls."""
    calls = range(1, dataset.header.tree.max_calls + 1)
    best = tune(lambda value: FixedDepth(int(value)), calls, dataset, costs)
    return best._replace(at_edge=best.value == calls[-1])  # there is nothing below one call


def replay(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, costs: CostTable) -> Replay:
    """Replay a network (deterministic decisions) or any policy of the protocol on `dataset`, up to its max_calls.

    A fixed depth decides nothing and pays for no decision.
    """
    return replay_ends(ends_of(policy, dataset), dataset, costs_for(policy, costs))


def costs_for(policy: PolicyNetwork | StopPolicy, costs: CostTable) -> CostTable:
    """What rounds cost under this policy."""
    fixed = isinstance(getattr(policy, "policy", policy), FixedDepth) and len(getattr(policy, "nodes", ())) < 2
    return costs.without_decisions() if fixed else costs


def replay_ends(ends: Ends, dataset: RoundDataset, costs: CostTable, accept: Tensor | None = None) -> Replay:
    """The figures for given ends. `accept`: see `played`."""
    made, tokens, seconds = played(ends, dataset, costs, accept)
    stops, nodes = ends.calls[made], ends.nodes_of(dataset)[made]
    return Replay(
        rounds=int(made.sum()),
        draft_calls=stops.double().mean().item(),
        nodes=nodes.double().mean().item(),
        mean_acceptance_length=tokens[made].mean().item(),
        tokens_per_time=(tokens.sum() / seconds.sum()).item(),
        stop_histogram=tuple(torch.bincount(stops - 1, minlength=dataset.scores.shape[1]).tolist()),
        node_histogram={n: count for n in nodes.unique().tolist() if (count := int((nodes == n).sum()))},
    )


def played(
    ends: Ends, dataset: RoundDataset, costs: CostTable, accept: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rounds these ends go through [N] bool, and their tokens and seconds [N] float64, 0 elsewhere.

    Args:
        accept: accepted tokens for every end, [N, T], or [N, T, S] of ends that choose nodes; None: as expected.
    """
    if accept is None:
        accept = dataset.expected_accept() if ends.chosen is None else dataset.expected_of_nodes()
    made, tokens = followed(ends, dataset), ends.pick(accept).double() + 1
    return made, tokens * made, ends.seconds(dataset, costs) * made


def followed(ends: Ends, dataset: RoundDataset) -> Tensor:
    """Which rounds [N] bool decoding with these ends makes: all, unless one begins at every token.

    The first of a prompt, then always the one behind the accepted tokens and the target's own.
    """
    if not dataset.header.every_token:
        return torch.ones_like(ends.calls, dtype=torch.bool)
    gained = _accepted(ends, dataset) + 1
    return _walk(dataset, lambda rows: gained[rows])


def _accepted(ends: Ends, dataset: RoundDataset) -> Tensor:
    """Draft tokens [N] that the text itself has accepted."""
    if ends.chosen is None:
        return ends.pick(dataset.accept_lengths)
    accepted = dataset.of_nodes().accepted_by_nodes
    assert accepted is not None
    return ends.pick(accepted).long()


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
def _ends_of_network(network: PolicyNetwork, dataset: RoundDataset) -> Ends:
    """When the network stops at P(stop) > 1/2, and its likeliest number of nodes there, as `RadarPolicy` does."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    flags, likely = [], []
    for index in torch.arange(len(dataset)).split(BATCH):
        scores = dataset.scores[index].to(device)
        if network.nodes:
            logits, sizes = network.both(scores, mass_of(network, dataset, index).to(device))
            likely.append(sizes.argmax(-1).cpu())
        else:
            logits = network(scores)
        flags.append(logits[:, :-1].softmax(-1)[..., 0].cpu() > 0.5)
    network.train(training)
    calls = first_stop(torch.cat(flags))
    return Ends(calls, _of_header(network, dataset, at_calls(torch.cat(likely), calls)) if network.nodes else None)


@torch.no_grad()
def ends_of(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset) -> Ends:
    """How a network's or a policy's rounds end.

    All rounds are one batch, unless the policy reads signals: then all prompts are one. The signal `accept_length` is
    what the policy's own stop would have had accepted in the round before: the recorded one, or, if one begins at every
    token, the one that the policy made. There, rounds that it does not make end after one call.
    """
    if isinstance(policy, PolicyNetwork):
        return _ends_of_network(policy, dataset)
    if not hasattr(policy, "attach"):
        policy.bind(len(dataset), dataset.header.tree, dataset.scores.device)
        return _play(policy, dataset, torch.arange(len(dataset)))
    prompts, row = torch.unique(dataset.prompt, return_inverse=True)
    signals = RoundSignals(torch.full((len(prompts),), -1), torch.zeros(len(prompts), dtype=torch.int64))
    attach_signals(policy, signals)
    policy.bind(len(prompts), dataset.header.tree, dataset.scores.device)
    ends = Ends(torch.ones(len(dataset), dtype=torch.int64), torch.zeros(len(dataset), dtype=torch.int64))
    last = torch.zeros(len(prompts), dtype=torch.int64)  # a prompt that has ended plays its last round again, unread
    choosing = bool(nodes_of_policy(policy))

    def turn(now: Tensor) -> Tensor:
        last[row[now]] = now
        signals.context_length[row[now]] = dataset.position[now]
        found = _play(policy, dataset, last).at(row[now])
        ends.calls[now] = found.calls
        if found.chosen is not None and ends.chosen is not None:
            ends.chosen[now] = found.chosen
        signals.accept_length[row[now]] = accepted = _accepted(found, dataset.select(now))
        return accepted + 1

    _walk(dataset, turn)
    return ends if choosing else ends._replace(chosen=None)


def _play(policy: StopPolicy, dataset: RoundDataset, rounds: Tensor) -> Ends:
    """One of the rounds [B] in every row of the policy."""
    policy.reset()
    scores, nodes = dataset.scores[rounds], nodes_of_policy(policy)
    mass = mass_of(policy, dataset, rounds) if nodes else scores
    flags = torch.zeros(scores.shape[:2], dtype=torch.bool)
    likely = torch.zeros(scores.shape[:2], dtype=torch.int64)
    for call, level in enumerate(scores.unbind(1)):
        flags[:, call] = policy.stop(level.contiguous())
        if nodes:
            likely[:, call] = policy.choose(mass[:, call])  # type: ignore[attr-defined]
    calls = first_stop(flags[:, :-1])  # after the last call the engine stops whatever it says
    return Ends(calls, _of_header(policy, dataset, at_calls(likely, calls)) if nodes else None)


def mass_of(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, rounds: Tensor) -> Tensor:
    """What the policy reads of the tree after every call of some rounds: [R, T, S] of its own numbers of nodes."""
    mass = dataset.of_nodes(nodes_of_policy(policy)).mass_by_nodes
    assert mass is not None
    return mass[rounds][..., _places(policy, dataset)].float()


def _of_header(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, chosen: Tensor) -> Tensor:
    """Of indices into the policy's numbers of nodes those into the recording's."""
    return torch.tensor(_places(policy, dataset))[chosen]


def _places(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset) -> list[int]:
    return [dataset.header.nodes.index(n) for n in nodes_of_policy(policy)]
