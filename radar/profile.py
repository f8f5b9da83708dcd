"""Where a round's time goes on this device: its parts as CUDA graphs of growing length, timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from radar.engine.capture import capture, on_stream
from radar.engine.graph import GraphEngine

__all__ = ["RoundProfile", "profile_round", "time_graphs"]


@dataclass(frozen=True)
class RoundProfile:
    """Milliseconds of GPU time of one round's parts; `draft_step` and `decision` are for one call.

    Attributes:
        prefix: committed tokens at the time.
        calls: draft calls of the round.
        begin: draft call 1, with the last round's tokens.
        draft_step: every further draft call.
        decision: the policy's word after each of them.
        select: choosing the nodes.
        verify: the target's forward over them, with its choice of tokens.
        accept: walking the tree.
        commit: cache rows, features, and the next round's input.
        whole: all of it in one straight graph.
    """

    prefix: int
    calls: int
    begin: float
    draft_step: float
    decision: float
    select: float
    verify: float
    accept: float
    commit: float
    whole: float

    def shares(self) -> dict[str, float]:
        """Fractions of `whole` by part, all calls counted."""
        steps = self.calls - 1
        parts = {"begin": self.begin, "draft steps": steps * self.draft_step, "decisions": self.calls * self.decision}
        parts |= {"select": self.select, "verify": self.verify, "accept": self.accept, "commit": self.commit}
        return {name: value / self.whole for name, value in parts.items()}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def profile_round(engine: GraphEngine, *, prefix: int, calls: int, repeats: int = 30) -> RoundProfile:
    """Time the parts of a round of `calls` draft calls behind `prefix` committed tokens.

    Every graph begins by setting the lengths back, and holds one part more than the one before it; a part is the
    difference. The values in the caches do not matter. Spoils a running generation.

    Args:
        engine: a graph engine; its policy decides, and is not obeyed.
        prefix: with the round's rows it has to fit into the cache.
        calls: 1 to max_calls.
        repeats: replays of each graph, interleaved.
    """
    if not 1 <= calls <= engine.config.max_calls:
        raise ValueError(f"calls must be from 1 to max_calls={engine.config.max_calls}, got {calls}")
    if not 1 <= prefix <= engine.target.max_length:
        raise ValueError(f"prefix must be from 1 to max_length={engine.target.max_length}, got {prefix}")
    engine.prepare()
    steps, target, drafter = engine.steps, engine.target, engine.drafter

    def restore() -> None:
        target.cache.length.fill_(prefix)
        drafter.cache.length.fill_(prefix - 1)
        steps.count.fill_(1)

    def begin() -> None:
        restore()
        steps.begin()

    def draft() -> None:
        begin()
        for _ in range(calls - 1):
            steps.step()

    def decide() -> None:
        begin()
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

    stages: tuple[Callable[[], object], ...] = (restore, begin, draft, decide, select, verify, accept, commit)
    on_stream(engine.stream, commit)
    graphs = [capture(stage, engine.stream, generator=engine.generator) for stage in stages]
    t = dict(zip((stage.__name__ for stage in stages), time_graphs(graphs, repeats), strict=True))
    target.cache.reset()
    drafter.reset()
    return RoundProfile(
        prefix=prefix,
        calls=calls,
        begin=t["begin"] - t["restore"],
        draft_step=(t["draft"] - t["begin"]) / max(1, calls - 1),
        decision=(t["decide"] - t["draft"]) / calls,
        select=t["select"] - t["decide"],
        verify=t["verify"] - t["select"],
        accept=t["accept"] - t["verify"],
        commit=t["commit"] - t["accept"],
        whole=t["commit"] - t["restore"],
    )


def time_graphs(graphs: list[torch.cuda.CUDAGraph], repeats: int, *, inner: int = 5) -> list[float]:
    """Median milliseconds of each graph's replay: runs of `inner` replays between two events, graphs in turn."""
    seconds: list[list[float]] = [[] for _ in graphs]
    for turn in range(repeats + 1):  # the first turn warms up
        for graph, found in zip(graphs, seconds, strict=True):
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            for _ in range(inner):
                graph.replay()
            after.record()
            after.synchronize()
            if turn:
                found.append(before.elapsed_time(after) / inner)
    return [statistics.median(found) for found in seconds]
