"""Where a round's time goes on this device, of one text or of all rows of a batch."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from radar.config import TreeConfig, check_int
from radar.engine.ambient import ambient
from radar.engine.capture import capture, on_stream
from radar.engine.captured import Streams
from radar.engine.eager import EagerEngine
from radar.engine.graph import GraphEngine
from radar.engine.steps import RoundSteps
from radar.errors import UsageError
from radar.metrics import Stopwatch
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork
from radar.target.ranks import check_whole
from radar.tools.costs import CostTable

__all__ = [
    *("RoundProfile", "cost_table", "median_round", "network_to_time", "profile_round", "profile_steps"),
    "time_graphs",
]


@dataclass(frozen=True)
class RoundProfile:
    """Milliseconds of a round's parts: of the GPU's time in graphs, of wall time on a CPU.

    Attributes:
        prefix: committed tokens at the time, of each row.
        nodes: verified, roots included, of all rows together.
        draft_calls: one figure for each draft call; the first takes the last round's tokens in.
        decision: the policy's word after one call.
        select: choosing the nodes.
        verify: the target's forward over them, with its choice of tokens.
        accept: walking the tree.
        commit: cache rows, features, and the next round's input.
        whole: all of it, as many decisions as calls.
        plain: a step of plain decoding; 0 where it was not asked for.
        choice: the policy's word on how many nodes are verified; 0 where it has none.
        tree_top_k: beams of the tree; None: not known.
    """

    prefix: int
    nodes: int
    draft_calls: tuple[float, ...]
    decision: float
    select: float
    verify: float
    accept: float
    commit: float
    whole: float
    plain: float = 0.0
    choice: float = 0.0
    tree_top_k: int | None = None

    @property
    def draft_step(self) -> float:
        """Mean of the draft calls after the first."""
        return statistics.mean(self.draft_calls[1:] or self.draft_calls)

    def parts(self) -> dict[str, float]:
        """Milliseconds by part over the whole round; they sum up to `whole`."""
        return {
            "first draft call": self.draft_calls[0],
            f"{len(self.draft_calls) - 1} more draft calls": sum(self.draft_calls[1:]),
            f"{len(self.draft_calls)} decisions": len(self.draft_calls) * self.decision,
            **({"choice of nodes": self.choice} if self.choice else {}),
            "select": self.select,
            "verify": self.verify,
            "accept": self.accept,
            "commit": self.commit,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"draft_step": self.draft_step}


def profile_round(
    engine: GraphEngine | EagerEngine, *, prefix: int, calls: int, repeats: int = 20, nodes: int | None = None
) -> RoundProfile:
    """Time the parts of a round of `calls` draft calls behind `prefix` committed tokens.

    What the caches hold does not matter. Spoils a running generation.

    Args:
        engine: its policy decides, and is not obeyed.
        prefix: 1 to max_length.
        calls: 1 to max_calls.
        repeats: measurements; medians count.
        nodes: that are verified, for which there is room; None: the tree's.

    Raises:
        ValueError: prefix, calls, repeats or nodes out of range; a model that ranks hold together.
    """
    check_whole(engine.target.ranks, "profile_round")
    if nodes is not None:
        check_int("profile_round", "nodes", nodes, 2, engine.target.max_rows)
    with ambient(engine.target.device):
        streams = None
        if isinstance(engine, GraphEngine):
            engine.prepare()
            streams = engine.streams
        else:
            engine.steps.policy = engine.bound  # which the next text would bring
        steps = engine.steps if nodes is None else engine.steps.verifying(nodes)
        nodes = steps.config.total_tokens
        profile = profile_steps(steps, nodes=nodes, prefix=prefix, calls=calls, repeats=repeats, streams=streams)
        engine.target.cache.reset()
        engine.drafter.reset()
    return profile


def network_to_time(tree: TreeConfig, nodes: Sequence[int]) -> RadarPolicy:
    """A network of the size that is trained, whose decisions and choice among these numbers of nodes a cost table has:
    how long they take does not depend on what it has learnt."""
    return RadarPolicy(PolicyNetwork(tree.tree_top_k, nodes=nodes).eval())


def median_round(profiles: Sequence[RoundProfile]) -> RoundProfile:
    """Of each part the median time, of rounds of one kind."""
    names = ("decision", "select", "verify", "accept", "commit", "whole", "plain", "choice")
    middle = {name: statistics.median(getattr(one, name) for one in profiles) for name in names}
    calls = tuple(map(statistics.median, zip(*(one.draft_calls for one in profiles), strict=True)))
    return replace(profiles[0], draft_calls=calls, **middle)


def cost_table(profiles: Sequence[RoundProfile], *, device: str, pair: str) -> CostTable:
    """What rounds cost by their profiles, of every node count behind every context; of two of a kind the later counts.

    All but the verifications is that of the first of those with the most draft calls.
    """

    def seconds(milliseconds: float) -> float:
        return max(milliseconds, 0.0) / 1000  # a difference of two medians may fall below zero by noise

    deep = max(profiles, key=lambda one: len(one.draft_calls))
    verify = {(one.nodes, one.prefix): seconds(one.verify) for one in profiles}
    nodes, contexts = (tuple(sorted(set(axis))) for axis in zip(*verify, strict=True))
    return CostTable(
        draft_call_seconds=tuple(map(seconds, deep.draft_calls)),
        nodes=nodes,
        contexts=contexts,
        verify_seconds=tuple(tuple(verify[count, context] for context in contexts) for count in nodes),
        decision_seconds=seconds(deep.decision),
        choice_seconds=seconds(deep.choice),
        rest_seconds=seconds(deep.select + deep.accept + deep.commit),
        tree_top_k=deep.tree_top_k,
        device=device,
        pair=pair,
    )


def profile_steps(
    steps: RoundSteps,
    *,
    nodes: int,
    prefix: int,
    calls: int,
    repeats: int,
    streams: Streams | None,
    plain: bool = False,
) -> RoundProfile:
    """`profile_round` of all rows of some steps, which hold a text or room for one; their caches are left as they come.

    Args:
        steps: their policy decides, and is not obeyed.
        nodes: that they verify, of all rows.
        prefix, calls, repeats: as there.
        streams: to capture on; None: the steps are called, and the clock on the wall counts.
        plain: time a step of plain decoding too.

    Raises:
        ValueError: as there.
    """
    target, drafter = steps.target, steps.drafter
    check_whole(target.ranks, "profile_steps")
    for name, value, most in (("calls", calls, steps.config.max_calls), ("prefix", prefix, target.max_length)):
        if not 1 <= value <= most:
            limit = "max_calls" if name == "calls" else "max_length"
            raise UsageError(f"{name} must be from 1 to {limit}={most}, got {value}")
    if repeats < 1:
        raise UsageError(f"repeats must be 1 or more, got {repeats}")
    for cache in (target.cache, drafter.cache):
        cache.set_window(cache.capacity if prefix + 256 > cache.capacity else prefix + 256)

    def restore() -> None:
        target.cache.length.fill_(prefix)
        drafter.cache.length.fill_(prefix - 1)
        steps.count.fill_(1)

    def decide() -> None:
        for _ in range(calls):
            steps.stop()

    chosen: list[Tensor] = []

    def verify() -> None:
        chosen[:] = [steps.verify()]

    def accept() -> None:
        steps.accept(chosen[0])

    def commit() -> None:
        steps.commit()
        steps.settle()

    def time(parts: Sequence[Callable[[], object]]) -> list[float]:
        if streams is None:
            return _wall_gaps(restore, parts, repeats, target.device)
        return _graph_gaps(streams, restore, parts, repeats, getattr(steps.policy, "generator", None))

    choose = [] if steps.sized is None else [steps.sized.choice]
    gaps = time([steps.begin, *[steps.step] * (calls - 1), decide, *choose, steps.select, verify, accept, commit])
    select, verified, accepted, committed = gaps[-4:]
    return RoundProfile(
        prefix=prefix,
        nodes=nodes,
        draft_calls=tuple(gaps[:calls]),
        decision=gaps[calls] / calls,
        choice=gaps[calls + 1] if choose else 0.0,
        select=select,
        verify=verified,
        accept=accepted,
        commit=committed,
        whole=sum(gaps),
        plain=time([steps.plain])[0] if plain else 0.0,
        tree_top_k=steps.config.tree_top_k,
    )


def _graph_gaps(
    streams: Streams,
    restore: Callable[[], None],
    parts: Sequence[Callable[[], object]],
    repeats: int,
    generator: torch.Generator | None,
) -> list[float]:
    """Milliseconds that each part adds to a graph of those before it: what lies between kernels counts too."""

    def first(count: int) -> None:
        restore()
        for part in parts[:count]:
            part()

    on_stream(streams.round, lambda: first(len(parts)))
    stages = [functools.partial(first, count) for count in range(len(parts) + 1)]
    graphs = [capture(stage, streams.round, generator=generator) for stage in stages]
    return [after - before for before, after in pairwise(time_graphs(graphs, repeats))]


def _wall_gaps(
    restore: Callable[[], None], parts: Sequence[Callable[[], object]], repeats: int, device: torch.device
) -> list[float]:
    """Median milliseconds of wall time of each part."""
    times: list[list[float]] = [[] for _ in parts]
    for turn in range(repeats + 1):  # the first turn warms up
        restore()
        watch = Stopwatch(synchronize=device.type == "cuda")
        for index, part in enumerate(parts):
            part()
            watch.lap(str(index))
        if turn:
            for index, found in enumerate(times):
                found.append(1000 * watch.seconds[str(index)])
    return [statistics.median(found) for found in times]


def time_graphs(graphs: Sequence[torch.cuda.CUDAGraph], repeats: int, *, inner: int = 5) -> list[float]:
    """Median milliseconds of each graph's replay: runs of `inner` replays between two events, graphs in turn."""
    times: list[list[float]] = [[] for _ in graphs]
    for turn in range(repeats + 1):  # the first turn warms up
        for graph, found in zip(graphs, times, strict=True):
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            for _ in range(inner):
                graph.replay()
            after.record()
            after.synchronize()
            if turn:
                found.append(before.elapsed_time(after) / inner)
    return [statistics.median(found) for found in times]
