"""The GPU's runner: one CUDA graph a round, its draft loop a WHILE node whose condition the policy sets."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from radar.config import GREEDY, SamplingParams, TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.capture import Mailbox, capture, capture_each, on_stream
from radar.engine.conditional import WhileLoop, why_no_while_nodes
from radar.engine.fallback import Fallback
from radar.engine.held import HeldText
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy, attach_signals
from radar.target.model import TargetModel
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


@dataclass
class _Plain:
    """The graphs of a plain step, and of what keeps the draft's cache up with many of them."""

    step: torch.cuda.CUDAGraph
    catch_up: torch.cuda.CUDAGraph
    result: Mailbox


class GraphEngine:
    """Runs `RoundSteps` as one graph: begin, WHILE (step, decide), select, verify, accept, commit.

    The host launches a graph a round and reads one small tensor; nothing is allocated, and nothing asks the host in
    between. Where WHILE nodes cannot be had (an old driver, cuda-bindings missing) three graphs take the one's place
    and the host reads the stop flag after every draft call; `name` says so.

    Args:
        target, drafter, policy: on one CUDA device.
        config: the tree's shape.
        conditional: False takes the three graphs anyway.
        fallback: chooses between rounds and plain steps; None: rounds alone.

    Attributes:
        held: the text in the caches.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter,
        policy: StopPolicy,
        config: TreeConfig,
        *,
        conditional: bool = True,
        fallback: Fallback | None = None,
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
        self._chunks: dict[int, Callable[[], object]] = {}  # of a prompt, by rows
        self._captured: dict[int, _Captured] = {}
        self._plain: _Plain | None = None
        self._launched = False
        self._drafted = True  # the round that was launched: not a plain step
        self._launched_at = 0.0
        self._done = torch.cuda.Event()
        self.fallback = fallback
        self.held = HeldText()
        self.policy = policy
        self.prepare()

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy from the next generation on. Raises ValueError if it cannot serve this tree."""
        if id(policy) not in self._captured:
            tried = copy.copy(policy)
            attach_signals(tried, self.steps.signals)
            tried.bind(self.steps.root.shape[0], self.config, self.target.device)
        if policy is not self.policy and self.fallback is not None:
            self.fallback.forget_rounds()
        self.policy = policy

    def prepare(self) -> None:
        """Capture what the next generation needs. Resets the caches: for the time between two generations."""
        if not self._chunks:
            self._forget()
            self._chunks = capture_each(self._prefill.chunk, self._prefill.sizes, self.stream)
        known = self._captured.get(id(self.policy))
        if known is None:
            while len(self._captured) >= _KEPT:
                torch.cuda.synchronize()  # a round that nobody read may still run
                del self._captured[next(iter(self._captured))]
            known = self._captured[id(self.policy)] = self._capture(self.policy)
        if self.fallback is not None and self._plain is None:
            self._plain = self._capture_plain()
        self._current = known
        self.steps.policy = known.bound

    @property
    def generator(self) -> torch.Generator | None:
        """What the policy in use draws from."""
        generator: torch.Generator | None = getattr(self._current.bound, "generator", None)
        return generator

    def start(self, input_ids: Tensor, sampling: SamplingParams = GREEDY, *, reuse_prefix: bool = False) -> Round:
        """Take a prompt [1, P] and return the first token; `reuse_prefix` goes on from what the caches hold of it."""
        watch, prompt = Stopwatch(), input_ids[0].tolist()
        self.discard()
        self.prepare()
        reused = self.held.begin(prompt, self.target.cache, reuse=reuse_prefix)
        self.steps.sampler.set(sampling)
        self.steps.sampler.start(input_ids)
        self._prefill.run(input_ids, self._chunks, start=reused)
        self.steps.load(self._prefill.logits, self._prefill.taps)
        if self.fallback is not None:
            self.fallback.begin_text()
        tokens = self.steps.root.tolist()
        self.held.add([*prompt[reused + 1 :], *tokens], pending=1)
        watch.lap("prefill")
        return Round(
            tokens, is_prefill=True, seconds=watch.seconds, num_prompt_tokens=len(prompt), num_reused_tokens=reused
        )

    def ahead(self) -> None:
        """Launch the next round, so that the GPU works while the host deals with the last one's tokens."""
        if self._launched:
            return
        self._launched = True
        self._launched_at = time.perf_counter()
        current, plain = self._current, self._plain
        self._drafted = self.fallback is None or plain is None or self.fallback.drafts
        if plain is not None and not self._drafted:
            if self.held.pending == self.config.max_accepted:
                plain.catch_up.replay()
                self.held.pending = 0
            plain.step.replay()
            plain.result.send()
        else:
            if current.whole is not None:
                current.whole.replay()
            else:
                self._replay_parts(current)
            current.result.send()
        if self.fallback is not None:
            self._done.record()

    def discard(self) -> None:
        """Forget a round that was launched and will not be read."""
        self._launched = False

    def round(self) -> Round:
        """One round, or one plain step; its tokens are certain."""
        watch, fallback = Stopwatch(), self.fallback
        self.ahead()
        # done before it is asked for: how long it took cannot be told from when it is read
        late = fallback is not None and self._done.query()
        result = self._read_round() if self._drafted else self._read_plain()
        self._launched = False
        if fallback is not None and fallback.drafts == self._drafted:  # not so if the policy changed meanwhile
            fallback.record(len(result.tokens), None if late else time.perf_counter() - self._launched_at)
        watch.lap("round")
        result.seconds = watch.seconds
        return result

    def _read_round(self) -> Round:
        calls, accept_length, *tokens = self._current.result.read()[0]
        tokens = tokens[: accept_length + 1]
        self.held.add(tokens, pending=len(tokens))
        return Round(tokens, calls, accept_length, num_draft_tokens=self.steps.num_drafted(calls))

    def _read_plain(self) -> Round:
        assert self._plain is not None
        tokens = self._plain.result.read()[0]
        self.held.add(tokens, pending=self.held.pending + 1)
        return Round(tokens, is_fallback=True)

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
        self._forget()
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

    def _forget(self) -> None:
        """Before work that is not a text's: nothing is held, one pair waits."""
        self.held.forget()
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.count.fill_(1)

    def _capture_plain(self) -> _Plain:
        self._forget()
        on_stream(self.stream, self.steps.plain)
        on_stream(self.stream, self.steps.catch_up)

        def plain() -> None:
            self._result = self.steps.plain()

        step = capture(plain, self.stream)
        return _Plain(step, capture(self.steps.catch_up, self.stream), Mailbox(self._result))

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
