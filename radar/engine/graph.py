"""The GPU's runner: one CUDA graph a round, its draft loop a WHILE node whose condition the policy sets."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.capture import Mailbox, capture, on_stream
from radar.engine.conditional import WhileLoop, why_no_while_nodes
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
from radar.sampling import GREEDY, SamplingParams
from radar.target import TargetModel
from radar_kernels.graph_condition import load_graph_condition, set_graph_condition

__all__ = ["GraphEngine"]

_KEPT = 4  # policies whose graphs are kept; each holds the memory of a verification's activations


@dataclass
class _Captured:
    """The graphs of one policy. `whole` is a round; without WHILE nodes `begin`, `step` and `finish` take its place."""

    policy: StopPolicy  # the caller's
    bound: StopPolicy  # our copy of it, whose tensors the graphs use
    result: Mailbox
    whole: torch.cuda.CUDAGraph | None = None
    loop: WhileLoop | None = None
    parts: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    stop: Tensor | None = None


class GraphEngine:
    """Runs `RoundSteps` as one graph: begin, WHILE (step, decide), select, verify, accept, commit.

    The host launches a graph a round and reads one small tensor; nothing is allocated, and nothing asks the host in
    between. Where WHILE nodes cannot be had (an old driver, cuda-bindings missing) three graphs take the one's place
    and the host reads the stop flag after every draft call; `name` says so.

    Args:
        target, drafter, policy: on one CUDA device.
        config: the tree's shape.
        conditional: False takes the three graphs anyway.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig, *, conditional: bool = True
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.config = config
        self.why_not_conditional = why_no_while_nodes(target.device) if conditional else "it was not asked for"
        self.name = "graph" if self.why_not_conditional is None else "graphs, host loop"
        self.steps = RoundSteps(target, drafter, copy.copy(policy), config)  # a copy: policies may serve two decoders
        self.stream = torch.cuda.Stream(target.device)
        self._body_stream = torch.cuda.Stream(target.device)
        self._prefill = Prefill(target, drafter)
        self._prefill_graph: torch.cuda.CUDAGraph | None = None
        self._captured: dict[int, _Captured] = {}
        self._launched = False
        self.policy = policy
        self.prepare()

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy from the next generation on. Raises ValueError if it cannot serve this tree."""
        if id(policy) not in self._captured:
            copy.copy(policy).bind(self.steps.root.shape[0], self.config, self.target.device)
        self.policy = policy

    def prepare(self) -> None:
        """Capture what the next generation needs. Resets the caches: for the time between two generations."""
        if self._prefill_graph is None:
            on_stream(self.stream, self._prefill.chunk)
            self._prefill_graph = capture(self._prefill.chunk, self.stream)
        known = self._captured.get(id(self.policy))
        if known is None:
            while len(self._captured) >= _KEPT:
                del self._captured[next(iter(self._captured))]
            known = self._captured[id(self.policy)] = self._capture(self.policy)
        self._current = known
        self.steps.policy = known.bound

    @property
    def generator(self) -> torch.Generator | None:
        """What the policy in use draws from."""
        generator: torch.Generator | None = getattr(self._current.bound, "generator", None)
        return generator

    def start(self, input_ids: Tensor, sampling: SamplingParams = GREEDY) -> Round:
        """Take a prompt [1, P] and return the first token."""
        watch = Stopwatch()
        self._launched = False
        self.prepare()
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.sampler.set(sampling)
        self.steps.sampler.start(input_ids)
        assert self._prefill_graph is not None
        self._prefill.run(input_ids, self._prefill_graph.replay)
        self.steps.load(self._prefill.logits, self._prefill.taps)
        tokens = self.steps.root.tolist()
        watch.lap("prefill")
        return Round(tokens, is_prefill=True, seconds=watch.seconds)

    def ahead(self) -> None:
        """Launch the next round, so that the GPU works while the host deals with the last one's tokens."""
        if self._launched:
            return
        self._launched = True
        current = self._current
        if current.whole is not None:
            current.whole.replay()
        else:
            self._replay_parts(current)
        current.result.send()

    def discard(self) -> None:
        """Forget a round that was launched and will not be read."""
        self._launched = False

    def round(self) -> Round:
        """One round; its tokens are certain."""
        watch = Stopwatch()
        self.ahead()
        calls, accept_length, *tokens = self._current.result.read()[0]
        self._launched = False
        watch.lap("round")
        return Round(tokens[: accept_length + 1], calls, accept_length, seconds=watch.seconds)

    def _replay_parts(self, current: _Captured) -> None:
        begin, step, finish = current.parts
        assert current.stop is not None
        begin.replay()
        for _ in range(self.config.max_calls - 1):
            if bool(current.stop.all()):  # the host asks: one flag per draft call
                break
            step.replay()
        finish.replay()

    def _capture(self, policy: StopPolicy) -> _Captured:
        """Warm up on the streams that will capture, then capture."""
        steps, bound = self.steps, copy.copy(policy)
        steps.set_policy(bound)
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.count.fill_(1)
        on_stream(self.stream, self._first)
        stop = on_stream(self._body_stream, self._next)
        on_stream(self.stream, self.steps.finish)
        generator = getattr(bound, "generator", None)
        if self.why_not_conditional is not None:
            return self._capture_parts(policy, bound, generator)
        loop = WhileLoop(self.target.device, self._body_stream)
        calls, limit = self.drafter.tree.calls, self.config.max_calls
        load_graph_condition(stop, calls, loop.handle, max_calls=limit)

        def body() -> None:
            set_graph_condition(self._next(), calls, loop.handle, max_calls=limit)

        def whole() -> None:
            loop.open()
            set_graph_condition(self._first(), calls, loop.handle, max_calls=limit)
            loop.capture(body)
            self._result = self.steps.finish()

        graph = capture(whole, self.stream, generator=generator)
        loop.arm()
        return _Captured(policy, bound, Mailbox(self._result), whole=graph, loop=loop)

    def _capture_parts(self, policy: StopPolicy, bound: StopPolicy, generator: torch.Generator | None) -> _Captured:
        stop = torch.zeros(self.steps.root.shape[0], dtype=torch.bool, device=self.target.device)

        def finish() -> None:
            self._result = self.steps.finish()

        def begin() -> None:
            stop.copy_(self._first())

        def step() -> None:
            stop.copy_(self._next())

        parts = [
            capture(begin, self.stream, generator=generator),
            capture(step, self._body_stream),
            capture(finish, self.stream),
        ]
        return _Captured(policy, bound, Mailbox(self._result), parts=parts, stop=stop)

    def _first(self) -> Tensor:
        self.steps.begin()
        return self.steps.stop()

    def _next(self) -> Tensor:
        self.steps.step()
        return self.steps.stop()
