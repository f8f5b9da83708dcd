"""Replay recorded rounds as rounds of a batch: how deep would all rows draft, what would be accepted, how fast is that.

Texts that were recorded one by one are put together by chance, and every row goes along its text by what it accepts. A
batch drafts as the engine's rule says, and verifies the best nodes of all rows together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from radar.engine.steps import FEW
from radar.errors import UsageError
from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.replay.replay import Replay, ends_of, first_stop
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

__all__ = ["LIMITED", "BatchChoice", "accepted", "batch_calls", "judge_batch", "replay_batch"]

ROWS, STEPS = 256, 128  # side by side, and rounds of each: means of tokens are known to 0.5 %
LIMITED = "{}, at most so many calls"


def batch_calls(stops: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's calls [G, B] and the batch's [G], where rows [G, B] would stop after so many: it ends its drafting
    once fewer than one in `FEW` rows would go on. One row alone does as it says."""
    if stops.shape[1] == 1:
        return stops, stops[:, 0]
    deepest = int(stops.max())
    going = (stops[..., None] > torch.arange(1, deepest)).sum(1)  # [G, T - 1] rows, after call 1 to T - 1
    made = first_stop(going * FEW < stops.shape[1])
    return torch.minimum(stops, made[:, None]), made


def accepted(scores: Tensor, path: Tensor, calls: Tensor, *, nodes: int, ranked: bool) -> Tensor:
    """Draft tokens accepted in each row [G, B] of batches that verify so many nodes of all rows, the roots included.

    Candidates are the beams' nodes, which are recorded. What a verification takes is among them while a row has no more
    than about twenty nodes; of more, and few calls, too few are told as accepted.

    Args:
        scores: [G, B, T, k] of the beams.
        path: [G, B, T] of the text's own nodes, -inf where the tree has none.
        calls: [G, B] made in each row.
        ranked: the best of all rows together; False: as many of each row, its own best.
    """
    drafted = torch.arange(1, scores.shape[2] + 1) <= calls[..., None]
    candidates = scores.masked_fill(~drafted[..., None], -torch.inf)
    rows = scores.shape[1]
    if ranked:
        candidates, room = candidates.flatten(1)[:, None], nodes - rows
    else:
        candidates, room = candidates.flatten(2), nodes // rows - 1
    least = candidates.topk(min(room, candidates.shape[-1])).values[..., -1:]  # that is verified, [G, 1 or B, 1]
    return (drafted & (path > -torch.inf) & (path >= least)).long().cumprod(-1).sum(-1)


def replay_batch(
    stops: Tensor,
    dataset: RoundDataset,
    costs: CostTable,
    *,
    rows: int,
    nodes: int,
    ranked: bool = True,
    in_all: int = ROWS,
    seed: int = 0,
) -> Replay:
    """Replay texts whose rounds stop after so many calls [N], so many at once; a text that ends is followed by another.

    Where a round begins at every token a row goes on behind what it has accepted, as decoding does; else every recorded
    round counts once.

    Args:
        dataset: recorded with the text's own path; in the order of the texts.
        costs: of so many rows together.
        rows: of a batch.
        nodes, ranked: see `accepted`.
        in_all: rows of all batches that are replayed side by side.
        seed: of the texts' order.

    Returns:
        Means over rows and rounds. Calls are the batch's, tokens a row's, `tokens_per_time` that of all rows.

    Raises:
        ValueError: an old recording, fewer nodes than two a row, rounds that are left out, or times that `costs` lacks.
    """
    if dataset.path is None:
        raise UsageError(
            "these rounds do not say where the text went through the tree, as earlier releases recorded them: record "
            "them again to a new folder"
        )
    if nodes < 2 * rows:
        raise UsageError(f"{rows} rows need {2 * rows} nodes or more, a root and a draft token each, got {nodes}")
    every, tree = dataset.header.every_token, replace(dataset.header.tree, total_tokens=nodes)
    inside = dataset.prompt.diff() == 0
    if every and (inside & (dataset.position.diff() != 1)).any():
        raise UsageError("where a round begins at every token none may be left out: the text would end there")
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), (~inside).nonzero()[:, 0] + 1))
    ends = torch.cat((starts[1:], torch.tensor([len(dataset)])))
    behind = ends.repeat_interleave(ends - starts)  # the text of each round
    generator = torch.Generator().manual_seed(seed)
    at = starts[torch.randint(len(starts), (max(1, in_all // rows), rows), generator=generator)]
    tokens, seconds, deep = [], [], []
    for _ in range(STEPS):
        calls, made = batch_calls(stops[at])
        gained = 1 + accepted(dataset.scores[at], dataset.path[at], calls, nodes=nodes, ranked=ranked)
        tokens.append(gained)
        seconds.append(costs.round_seconds(made, dataset.position[at].double().mean(1), tree))
        deep.append(made)
        then = at + (gained if every else 1)
        others = starts[torch.randint(len(starts), at.shape, generator=generator)]
        at = torch.where(then < behind[at], then, others)
    made, gained = torch.cat(deep), torch.cat(tokens).double()
    return Replay(
        rounds=len(made),
        draft_calls=made.double().mean().item(),
        nodes=float(nodes),
        mean_acceptance_length=gained.mean().item(),
        tokens_per_time=(gained.sum() / torch.cat(seconds).sum()).item(),
        stop_histogram=tuple(torch.bincount(made - 1, minlength=dataset.scores.shape[1]).tolist()),
        node_histogram={nodes: len(made)},
    )


class BatchChoice(NamedTuple):
    """A policy in batches of so many rows.

    Attributes:
        value: what tuning gave it: calls of a fixed depth, a threshold's mass, the most calls; None: nothing to tune.
        nodes: verified together, tuned too.
        result: on the rounds that judge.
    """

    rows: int
    name: str
    value: float | None
    nodes: int
    result: Replay


def judge_batch(
    policies: Mapping[str, StopPolicy],
    develop: RoundDataset,
    judge: RoundDataset,
    costs: CostTable,
    *,
    rows: int,
    seed: int = 0,
) -> list[BatchChoice]:
    """EAGLE-3, the best fixed depth and threshold for batches of so many rows, and policies, as they are and with a
    bound on the batch's calls; all with the best number of nodes that `costs` measured.

    Args:
        policies: by name.
        develop: rounds that tune.
        judge: rounds of other prompts.
        costs: of so many rows together.
    """
    most, free = develop.header.tree.max_calls, costs.without_decisions()
    tried: dict[str, list[tuple[float | None, StopPolicy, int]]] = {
        "EAGLE-3 (8 calls)": [(None, FixedDepth(min(8, most)), most)],
        "fixed depth": [(calls, FixedDepth(calls), most) for calls in range(1, most + 1)],
        "beam-mass threshold": [(mass / 20, Threshold(mass / 20), most) for mass in range(1, 19)],
    }
    if twice := tried.keys() & policies.keys():
        raise UsageError(f"policies need names of their own, got {min(twice)!r}")
    for name, policy in policies.items():
        tried[name] = [(None, policy, most)]
        tried[LIMITED.format(name)] = [(calls, policy, calls) for calls in range(1, most + 1)]
    nodes = [count for count in costs.nodes if count >= 2 * rows]
    if not nodes:
        raise UsageError(f"the costs of {rows} rows are of {costs.nodes[-1]} nodes at most, too few for them")
    stops: dict[tuple[int, int], Tensor] = {}

    def play(data: RoundDataset, policy: StopPolicy, bound: int, count: int, in_all: int = ROWS) -> Replay:
        key = id(policy), id(data)
        if key not in stops:
            stops[key] = ends_of(policy, data).calls
        prices = free if isinstance(policy, FixedDepth) else costs
        return replay_batch(stops[key].clamp(max=bound), data, prices, rows=rows, nodes=count, in_all=in_all, seed=seed)

    found = []
    for name, choices in tried.items():
        options = [(*choice, count) for choice in choices for count in nodes]
        speeds = [play(develop, policy, bound, count).tokens_per_time for _, policy, bound, count in options]
        value, policy, bound, count = options[speeds.index(max(speeds))]
        found.append(BatchChoice(rows, name, value, count, play(judge, policy, bound, count, 8 * ROWS)))
    return found
