"""Compare stop policies by replay: tokens per second under a cost table, against each other and against oracles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.policy.base import FixedDepth, StopPolicy
from radar.policy.lstm import PolicyNetwork
from radar.train.backward import BackwardInduction
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.replay import followed, replay_stops, stops_of
from radar.train.tune import tune_fixed_depth

__all__ = ["BEST_FIXED", "Evaluation", "evaluate", "oracle_stops", "render", "shared_prompts"]

BEST_FIXED, ATTAINABLE, HINDSIGHT = "best fixed depth of these rounds", "attainable oracle", "hindsight oracle"
RESAMPLES = 2000

Contender = PolicyNetwork | StopPolicy


class Evaluation(NamedTuple):
    """One policy on the rounds. Ratios are to the reference; intervals are 95 %, by paired bootstrap over prompts.

    Attributes:
        gap_closed: (speed - best fixed) / (attainable oracle - best fixed), the best fixed depth of these very rounds;
            None without an attainable oracle, or where it is not above the best fixed depth.
        hindsight_gap_closed: the same for the hindsight oracle.
    """

    name: str
    tokens_per_second: float
    ratio: float
    interval: tuple[float, float]
    draft_calls: float
    mean_acceptance_length: float
    stop_histogram: tuple[int, ...]
    gap_closed: float | None
    hindsight_gap_closed: float | None

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


def evaluate(
    policies: Mapping[str, Contender],
    dataset: RoundDataset,
    costs: CostTable,
    *,
    reference: str,
    attainable: BackwardInduction | None = None,
    seed: int = 0,
) -> list[Evaluation]:
    """Replay every policy, the best fixed depth of these rounds, and the oracles.

    Args:
        policies: by name, tuned and trained on other prompts.
        dataset: rounds of two prompts or more.
        costs: seconds of a round. `FixedDepth` and the oracles pay for no decision.
        reference: name of the policy that ratios refer to.
        attainable: what the features allow (`fit_backward` on other prompts). It is judged here, not fitted here.
        seed: of the bootstrap.

    Raises ValueError for an unknown reference or rounds of one prompt.
    """
    if reference not in policies:
        raise UsageError(f"evaluate: reference {reference!r} is none of {', '.join(policies)}")
    prompts, row = torch.unique(dataset.prompt, return_inverse=True)
    if len(prompts) < 2:
        raise UsageError("evaluate: intervals need rounds of two prompts or more")
    free = costs.without_decisions()
    plays = {
        name: (stops_of(policy, dataset), free if isinstance(policy, FixedDepth) else costs)
        for name, policy in policies.items()
    }
    best = tune_fixed_depth(dataset, costs)
    plays[BEST_FIXED] = (torch.full((len(dataset),), int(best.value)), free)
    if attainable is not None:
        plays[ATTAINABLE] = (attainable.stops(dataset), free)
    plays[HINDSIGHT] = (oracle_stops(dataset, free), free)
    accept = {name: dataset.expected_accept() for name in plays} | {HINDSIGHT: dataset.accept_lengths.float()}

    sums: dict[str, tuple[Tensor, Tensor]] = {}  # tokens and seconds of every prompt
    made = {name: followed(stops, dataset) for name, (stops, _) in plays.items()}
    for name, (stops, table) in plays.items():
        tokens = (accept[name].gather(1, stops[:, None] - 1)[:, 0].double() + 1) * made[name]
        seconds = table.round_seconds(stops, dataset.position, dataset.header.tree) * made[name]
        empty = torch.zeros(len(prompts), dtype=torch.float64)
        sums[name] = (empty.index_add(0, row, tokens), empty.index_add(0, row, seconds))
    speeds = {name: (tokens.sum() / seconds.sum()).item() for name, (tokens, seconds) in sums.items()}
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(prompts), (RESAMPLES, len(prompts)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(prompts), dtype=torch.float64)
    weights.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))

    def resampled(name: str) -> Tensor:
        tokens, seconds = sums[name]
        return (weights @ tokens) / (weights @ seconds)

    results = []
    for name, (stops, table) in plays.items():
        ratios = resampled(name) / resampled(reference)
        low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        shown = replay_stops(stops, dataset, table)
        reached = accept[name].gather(1, stops[:, None] - 1)[made[name]].double().mean().item() + 1
        results.append(
            Evaluation(
                name,
                speeds[name],
                speeds[name] / speeds[reference],
                (low, high),
                shown.draft_calls,
                reached,
                shown.stop_histogram,
                _share(speeds, name, ATTAINABLE),
                _share(speeds, name, HINDSIGHT),
            )
        )
    return results


def oracle_stops(dataset: RoundDataset, costs: CostTable) -> Tensor:
    """Draft calls [N] of a policy that knows every outcome: argmax of tokens - rate * time, rate at its own throughput.

    Each round by itself: where one begins at every token, which rounds follow is not weighed.

    Not the argmax of tokens / time per round, which does not maximise the ratio of sums.
    """
    times = costs.times(dataset.header.tree, dataset.position)
    accept = dataset.accept_lengths.double()
    rate, stops = 0.0, torch.ones(len(dataset), dtype=torch.int64)
    while True:  # Dinkelbach's iteration: the rate rises strictly until it is the optimum, over finitely many choices
        tokens = accept.gather(1, stops[:, None] - 1) + 1
        reached = (tokens.sum() / times.gather(1, stops[:, None] - 1).sum()).item()
        if reached <= rate * (1 + 1e-12):
            return stops
        rate = reached
        stops = (accept - rate * times).argmax(1) + 1


def shared_prompts(one: RoundDataset, other: RoundDataset) -> list[int]:
    """Prompts of `one` whose rounds the other data set holds as well, under whatever number."""

    def contents(data: RoundDataset) -> dict[str, int]:
        bare = replace(data, prompt=torch.zeros_like(data.prompt), signals=None, distribution=None)
        return {bare.select(data.prompt == n).fingerprint(): n for n in torch.unique(data.prompt).tolist()}

    mine, theirs = contents(one), contents(other)
    return sorted(mine[content] for content in mine.keys() & theirs.keys())


def render(results: list[Evaluation]) -> str:
    """A table for a terminal or Markdown."""
    head = ["policy", "tokens/s", "ratio", "95 % interval", "calls", "acceptance", "gap closed", "of hindsight"]
    lines = [head, ["---"] * len(head)]
    for one in results:
        shares = ["" if s is None else f"{s:.0%}" for s in (one.gap_closed, one.hindsight_gap_closed)]
        interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        figures = [f"{one.tokens_per_second:.4g}", f"{one.ratio:.3f}", interval, f"{one.draft_calls:.2f}"]
        lines.append([one.name, *figures, f"{one.mean_acceptance_length:.2f}", *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(speeds: Mapping[str, float], name: str, oracle: str) -> float | None:
    if oracle not in speeds or speeds[oracle] <= speeds[BEST_FIXED]:
        return None
    return (speeds[name] - speeds[BEST_FIXED]) / (speeds[oracle] - speeds[BEST_FIXED])
