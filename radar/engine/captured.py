"""A round as CUDA graphs: one whose draft loop is a WHILE node, or three around a loop of the host."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from radar.engine.capture import Mailbox, capture, on_stream
from radar.engine.conditional import Switch, WhileLoop
from radar.engine.sized import Sized
from radar.engine.steps import RoundSteps
from radar.policy.base import StopPolicy
from radar_kernels.graph_condition import (
    load_graph_choice,
    load_graph_condition,
    set_graph_choice,
    set_graph_condition,
)

__all__ = ["CapturedPlain", "CapturedRound", "Streams", "capture_plain", "capture_round"]


_idle: dict[torch.device, list[tuple[torch.cuda.Stream, torch.cuda.Stream]]] = {}


class Streams:
    """What captures, taken from what earlier engines left: a stream keeps a workspace of cuBLAS for good.

    Attributes:
        round: of the round.
        body: of its loop's body.
    """

    def __init__(self, device: torch.device) -> None:
        idle = _idle.setdefault(device, [])
        try:
            pair = idle.pop()
        except IndexError:
            pair = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.round, self.body = pair
        weakref.finalize(self, idle.append, pair)


@dataclass(frozen=True)
class CapturedRound:
    """The graphs of one policy.

    Attributes:
        policy: the caller's.
        bound: our copy of it, whose tensors the graphs use.
        replay: enqueues a round.
        result: brings what `RoundSteps.commit` returns to the host.
        steps: whose `scored` is what a round chose by, behind its replay.
        keeps: what lives as long as the graphs.
    """

    policy: StopPolicy
    bound: StopPolicy
    replay: Callable[[], None]
    result: Mailbox
    steps: RoundSteps
    keeps: tuple[object, ...]


@dataclass(frozen=True)
class CapturedPlain:
    """The graphs of a plain step, and of what keeps the draft's cache up with many of them; see `CapturedRound`."""

    step: torch.cuda.CUDAGraph
    catch_up: torch.cuda.CUDAGraph
    result: Mailbox
    steps: RoundSteps

    def time(self, steps: int) -> float:
        """Seconds that a step takes where no row holds a text: the mean of so many, behind one more. It waits for the
        device."""
        self.step.replay()  # the first one uploads the graph
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(steps):
            self.step.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps


def capture_round(
    steps: RoundSteps, policy: StopPolicy, bound: StopPolicy, streams: Streams, *, conditional: bool
) -> CapturedRound:
    """Warm up on the streams that will capture, then capture.

    Args:
        steps: decides by `bound`.
        policy, bound: see `CapturedRound`.
        conditional: as one graph with a WHILE node; else three graphs, and the host reads the stop flags.
    """
    steps = copy.copy(steps)  # what the graph leaves there nobody else overwrites

    def first() -> Tensor:
        steps.begin()
        return steps.stop()

    def following() -> Tensor:
        steps.step()
        return steps.stop()

    on_stream(streams.round, first)
    stop = on_stream(streams.body, following)
    sized = steps.sized
    on_stream(streams.body if sized is not None and conditional else streams.round, steps.finish_each)
    if sized is not None:
        steps.scored = sized.keep()
        choice = on_stream(streams.round, sized.choice)
    generator: torch.Generator | None = getattr(bound, "generator", None)
    if not conditional:
        return _three_graphs(steps, policy, bound, streams, first, following, generator)
    device, calls, limit = steps.target.device, steps.drafter.tree.calls, steps.max_calls
    loop = WhileLoop(device, streams.body)
    load_graph_condition(stop, calls, loop.handle, max_calls=limit)
    switch = None if sized is None else Switch(device, streams.body)
    if sized is not None and switch is not None:
        load_graph_choice(choice, switch.handle)

    def body() -> None:
        set_graph_condition(following(), calls, loop.handle, max_calls=limit)

    def whole() -> None:
        loop.open()
        if switch is not None:
            switch.open()
        set_graph_condition(first(), calls, loop.handle, max_calls=limit)
        loop.capture(body)
        if sized is None or switch is None:
            steps.finish()
        else:
            set_graph_choice(sized.choice(), switch.handle)
            switch.capture([partial(sized.end_into, way) for way in sized.ways])

    graph = capture(whole, streams.round, generator=generator)
    loop.arm()
    if switch is not None:
        switch.arm()
    return CapturedRound(policy, bound, graph.replay, Mailbox(steps.result), steps, (graph, loop, switch, sized))


def _three_graphs(
    steps: RoundSteps,
    policy: StopPolicy,
    bound: StopPolicy,
    streams: Streams,
    first: Callable[[], Tensor],
    following: Callable[[], Tensor],
    generator: torch.Generator | None,
) -> CapturedRound:
    stop = torch.zeros(steps.root.shape[0], dtype=torch.bool, device=steps.target.device)
    begin = capture(lambda: stop.copy_(first()), streams.round, generator=generator)
    step = capture(lambda: stop.copy_(following()), streams.body, generator=generator)
    choice = torch.zeros(1, dtype=torch.int64, device=steps.target.device)
    sized, choose, finish = steps.sized, None, []
    if sized is None:
        finish.append(capture(steps.finish, streams.round))
    else:
        choose = capture(partial(_copy_choice, sized, choice), streams.round)
        finish += [capture(partial(sized.end_into, way), streams.round) for way in sized.ways]

    def replay() -> None:
        begin.replay()
        for _ in range(steps.max_calls - 1):
            if bool(stop.all()):  # the host asks: one flag per draft call
                break
            step.replay()
        if choose is not None:
            choose.replay()
        finish[0 if choose is None else int(choice)].replay()

    return CapturedRound(policy, bound, replay, Mailbox(steps.result), steps, (begin, step, choose, finish, sized))


def _copy_choice(sized: Sized[RoundSteps], choice: Tensor) -> None:
    choice.copy_(sized.choice())


def capture_plain(steps: RoundSteps, streams: Streams) -> CapturedPlain:
    """Warm up, then capture."""
    steps = copy.copy(steps)
    on_stream(streams.round, steps.plain)
    on_stream(streams.round, steps.catch_up)
    step, catch_up = (capture(work, streams.round) for work in (steps.plain, steps.catch_up))
    return CapturedPlain(step, catch_up, Mailbox(steps.root[:, None]), steps)
