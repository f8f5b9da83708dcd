"""Compare stop policies by replay: tokens per second under a cost table, against each other and against oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.policy.base import StopPolicy
from radar.policy.network import PolicyNetwork
from radar.replay.ends import Ends, priced
from radar.replay.replay import costs_for, ends_of, played, replay_ends, tune_fixed
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.tools.table import table

__all__ = [
    *("BEST_FIXED", "HINDSIGHT", "KNOWING", "Evaluation", "Outcome"),
    *("evaluate", "is_ahead", "oracle_ends", "outcome_of", "render", "speed_ratio"),
]

BEST_FIXED, HINDSIGHT = "best fixed of these rounds", "hindsight oracle"
KNOWING = "oracle that knows the target's probabilities"
RESAMPLES = 2000


class Evaluation(NamedTuple):
    """One policy on the rounds. Ratios are to the reference; intervals are 95 %, by paired bootstrap over prompts.

    Attributes:
        nodes: verified in a round, the root included.
        gap_closed: (speed - best fixed) / (oracle - best fixed), of the best fixed depth of these very rounds and the
            oracle that knows the target's probabilities, which no policy can beat in expectation. Both choose a number
            of nodes too, where several were recorded. None where the probabilities were not (temperature 0), or that
            oracle is not above the best fixed depth.
        hindsight_gap_closed: the same for the oracle that knows what was accepted.
    """

    name: str
    tokens_per_second: float
    ratio: float
    interval: tuple[float, float]
    draft_calls: float
    nodes: float
    mean_acceptance_length: float
    stop_histogram: tuple[int, ...]
    gap_closed: float | None
    hindsight_gap_closed: float | None


class Outcome(NamedTuple):
    """What a policy's rounds come to.

    Attributes:
        prompt: [N] int64.
        tokens, seconds: [N] float64; 0 of a round that the policy does not make.
    """

    prompt: Tensor
    tokens: Tensor
    seconds: Tensor

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return (self.tokens.sum() / self.seconds.sum()).item()


def outcome_of(policy: PolicyNetwork | StopPolicy, dataset: RoundDataset, costs: CostTable) -> Outcome:
    """Replay a policy, for a comparison with one in other rounds of the same prompts."""
    return _outcome(dataset, ends_of(policy, dataset), costs_for(policy, costs))


def _outcome(dataset: RoundDataset, ends: Ends, costs: CostTable, accept: Tensor | None = None) -> Outcome:
    return Outcome(dataset.prompt, *played(ends, dataset, costs, accept)[1:])


def speed_ratio(one: Outcome, reference: Outcome, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """How many times as fast one is as the reference, and the 95 % interval of that by paired bootstrap over prompts,
    which have to be the same. Their rounds may be of trees of another shape. Raises ValueError for other prompts."""
    prompts = one.prompt.unique()
    if not torch.equal(prompts, reference.prompt.unique()):
        raise UsageError("speed_ratio: the two are of other prompts, so that nothing pairs their rounds")
    draws = torch.randint(len(prompts), (RESAMPLES, len(prompts)), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(RESAMPLES, len(prompts), dtype=torch.float64)
    weights.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))

    def resampled(of: Outcome) -> Tensor:
        row, none = torch.searchsorted(prompts, of.prompt), weights.new_zeros(len(prompts))
        tokens, seconds = (weights @ none.index_add(0, row, part) for part in (of.tokens, of.seconds))
        return tokens / seconds

    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(resampled(one) / resampled(reference), bounds).tolist()
    return one.speed / reference.speed, (low, high)


def is_ahead(one: Outcome, other: Outcome) -> bool:
    """By more than chance: all of the interval of `speed_ratio` is."""
    return speed_ratio(one, other)[1][0] > 1


def evaluate(
    policies: Mapping[str, PolicyNetwork | StopPolicy],
    dataset: RoundDataset,
    costs: CostTable,
    *,
    reference: str | Outcome,
    seed: int = 0,
) -> list[Evaluation]:
    """Replay every policy, the best fixed depth of these rounds, and the oracles.

    Args:
        policies: by name, tuned and trained on other prompts.
        dataset: rounds of two prompts or more.
        costs: seconds of a round. `FixedDepth` and the oracles pay for no decision.
        reference: name of the policy that ratios refer to, or what another's rounds of the same prompts came to.
        seed: of the bootstrap.

    Raises ValueError for an unknown reference or rounds of one prompt.
    """
    if isinstance(reference, str) and reference not in policies:
        raise UsageError(f"evaluate: reference {reference!r} is none of {', '.join(policies)}")
    if len(dataset.prompt.unique()) < 2:
        raise UsageError("evaluate: intervals need rounds of two prompts or more")
    free, fixed_policy = costs.without_decisions(), tune_fixed(dataset, costs).policy
    plays: dict[str, tuple[Ends, CostTable, Tensor | None]] = {  # ends, prices, tokens
        name: (ends_of(policy, dataset), costs_for(policy, costs), None)
        for name, policy in {**policies, BEST_FIXED: fixed_policy}.items()
    }
    if dataset.distribution is not None or dataset.expected_by_nodes is not None:
        known = (dataset.expected_of_nodes if priced(dataset, costs) else dataset.expected_accept)()
        plays[KNOWING] = (oracle_ends(dataset, free, known), free, known)
    came = dataset.accepted_by_nodes if priced(dataset, costs) else dataset.accept_lengths
    assert came is not None
    plays[HINDSIGHT] = (oracle_ends(dataset, free, came), free, came)

    shown = {name: replay_ends(ends, dataset, prices, accept) for name, (ends, prices, accept) in plays.items()}
    fixed = shown[BEST_FIXED].tokens_per_time
    basis = _outcome(dataset, *plays[reference]) if isinstance(reference, str) else reference
    results = []
    for name, one in shown.items():
        speed = one.tokens_per_time
        ratio, interval = speed_ratio(_outcome(dataset, *plays[name]), basis, seed=seed)
        gaps = [shown[top].tokens_per_time - fixed if top in shown else 0.0 for top in (KNOWING, HINDSIGHT)]
        shares = [(speed - fixed) / gap if gap > 0 else None for gap in gaps]
        about = one.draft_calls, one.nodes, one.mean_acceptance_length
        results.append(Evaluation(name, speed, ratio, interval, *about, one.stop_histogram, *shares))
    return results


def oracle_ends(dataset: RoundDataset, costs: CostTable, accept: Tensor) -> Ends:
    """How rounds end by a policy that knows the accepted tokens of every end beforehand: [N, T] of those with as many
    nodes as the tree has, or [N, T, S] of those recorded, of which those count that the costs know.

    It maximises tokens - rate * time at the rate that it reaches itself, and so the ratio of the sums.
    """
    tree, places = dataset.header.tree, torch.tensor(priced(dataset, costs))
    if chooses := accept.dim() == 3:
        nodes = [dataset.header.nodes[at] for at in places.tolist()]
        times, accept = costs.times_of_nodes(tree, dataset.position, nodes).flatten(1), accept[..., places].flatten(1)
    else:
        times = costs.times(tree, dataset.position)
    tokens = accept.double() + 1
    rate, end = 0.0, torch.zeros(len(dataset), 1, dtype=torch.int64)
    # Dinkelbach's iteration: the rate rises strictly until it is the optimum, over finitely many choices
    while (reached := (tokens.gather(1, end).sum() / times.gather(1, end).sum()).item()) > rate * (1 + 1e-12):
        rate = reached
        end = (tokens - rate * times).argmax(1, keepdim=True)
    if not chooses:
        return Ends(end[:, 0] + 1)
    return Ends(end[:, 0] // len(places) + 1, places[end[:, 0] % len(places)])


def render(results: Sequence[Evaluation]) -> str:
    """A table for a terminal."""
    head = ["policy", "tokens/s", "over reference", "95 % interval", "draft calls [per round]", "nodes [per round]"]
    rows = []
    for one in results:
        shares = ["" if s is None else f"{s:.0%}" for s in (one.gap_closed, one.hindsight_gap_closed)]
        interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        figures = [f"{one.tokens_per_second:.4g}", f"{one.ratio:.3f}", interval]
        figures += [f"{one.draft_calls:.2f}", f"{one.nodes:.1f}", f"{one.mean_acceptance_length:.2f}"]
        rows.append([one.name, *figures, *shares])
    return table([*head, "tokens [per round]", "gap closed", "of hindsight"], rows)
