"""Where a round's time goes on this device: its parts in sequences of growing length, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from radar.engine.capture import capture, on_stream
from radar.engine.eager import EagerEngine
from radar.engine.graph import GraphEngine

__all__ = ["RoundProfile", "profile_round", "time_calls", "time_graphs"]


@dataclass(frozen=True)
class RoundProfile:
    """Milliseconds of a round's parts: of the GPU's time in graphs, of wall time on a CPU.

    Attributes:
        prefix: committed tokens at the time.
        nodes: verified, the root included.
        draft_calls: one figure for each draft call; the first takes the last round's tokens in.
        decision: the policy's word after one call.
        select: choosing the nodes.
        verify: the target's forward over them, with its choice of tokens.
        accept: walking the tree.
        commit: cache rows, features, and the next round's input.
        whole: all of it, as many decisions as calls.
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
            "select": self.select,
            "verify": self.verify,
            "accept": self.accept,
            "commit": self.commit,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"draft_step": self.draft_step}


@torch.inference_mode()
def profile_round(engine: GraphEngine | EagerEngine, *, prefix: int, calls: int, repeats: int = 20) -> RoundProfile:
    """Time the parts of a round of `calls` draft calls behind `prefix` committed tokens.

    Every sequence begins by setting the lengths back and holds one part more than the one before it; a part is the
    difference. What the caches hold does not matter. Spoils a running generation.

    Args:
        engine: its policy decides, and is not obeyed.
        prefix: 1 to max_length.
        calls: 1 to max_calls.
        repeats: of each sequence, interleaved; medians count.

    Raises:
        ValueError: prefix or calls out of range.
    """
    if not 1 <= calls <= engine.config.max_calls:
        raise ValueError(f"calls must be from 1 to max_calls={engine.config.max_calls}, got {calls}")
    if not 1 <= prefix <= engine.target.max_length:
        raise ValueError(f"prefix must be from 1 to max_length={engine.target.max_length}, got {prefix}")
    steps, target, drafter = engine.steps, engine.target, engine.drafter
    for cache in (target.cache, drafter.cache):
        cache.set_window(cache.capacity if prefix + 256 > cache.capacity else prefix + 256)

    def restore() -> None:
        target.cache.length.fill_(prefix)
        drafter.cache.length.fill_(prefix - 1)
        steps.count.fill_(1)

    def draft(count: int) -> None:
        restore()
        steps.begin()
        for _ in range(count - 1):
            steps.step()

    def decide() -> None:
        restore()
        steps.begin()
        steps.stop()
        for _ in range(calls - 1):
            steps.step()
            steps.stop()

    def select() -> None:
        decide()
        steps.select()

    def verify() -> Tensor:
        select()
        return steps.verify()

    def accept() -> None:
        steps.accept(verify())

    def commit() -> None:
        accept()
        steps.commit()

    stages: list[Callable[[], object]] = [restore]
    stages += [lambda count=count: draft(count) for count in range(1, calls + 1)]  # type: ignore[misc]
    stages += [decide, select, verify, accept, commit]
    if isinstance(engine, GraphEngine):
        engine.prepare()
        on_stream(engine.stream, commit)
        graphs = [capture(stage, engine.stream, generator=engine.generator) for stage in stages]
        found = time_graphs(graphs, repeats)
    else:
        found = time_calls(stages, repeats)
    target.cache.reset()
    drafter.reset()
    gaps = [after - before for before, after in pairwise(found)]
    return RoundProfile(
        prefix=prefix,
        nodes=engine.config.total_tokens,
        draft_calls=tuple(gaps[:calls]),
        decision=gaps[calls] / calls,
        select=gaps[calls + 1],
        verify=gaps[calls + 2],
        accept=gaps[calls + 3],
        commit=gaps[calls + 4],
        whole=found[-1] - found[0],
    )


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


def time_calls(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of wall time of each call, in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, found in zip(calls, times, strict=True):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                found.append(1000 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]
