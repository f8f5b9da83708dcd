"""The GPU's runner: one CUDA graph a round, its draft loop a WHILE node whose condition the policy sets."""

from __future__ import annotations

import time

import torch

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.admission import Admission
from radar.engine.base import EngineRequest
from radar.engine.capture import capture_each
from radar.engine.captured import CapturedPlain, CapturedRound, Streams, capture_plain, capture_round
from radar.engine.conditional import why_no_while_nodes
from radar.engine.eager import EagerEngine
from radar.engine.fallback import Fallback
from radar.engine.logprobs import Watch
from radar.engine.rehearsal import rehearse
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel
from radar_kernels.graph_condition import set_graph_choice, set_graph_condition

__all__ = ["GraphEngine"]

_KEPT = 4  # policies whose graphs are kept; each holds the memory of a verification's activations


class GraphEngine:
    """Runs `RoundSteps` as one graph: begin, WHILE (step, decide), select, verify, accept, commit; where a policy
    chooses how many nodes are verified, the last four are the ways of a SWITCH.

    The host launches a graph a round and reads one small tensor; nothing is allocated, and nothing asks the host in
    between. Where WHILE nodes cannot be had (an old driver, cuda-bindings missing) three graphs take the one's place
    and the host reads the stop flag after every draft call; `name` says so. A request whose scores go through
    processors on the host is driven by the host, on the same buffers.

    Args:
        target, drafter, policy: on one CUDA device.
        config: the tree's shape.
        conditional: False takes the three graphs anyway.
        fallback: chooses between rounds and plain steps; None: rounds alone.

    Attributes:
        steps: of a round.
        admission: takes prompts; its `prefix` is the text in the caches.
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
        self.policy = policy
        self.fallback = fallback
        self.why_not_conditional = why_no_while_nodes(target.device) if conditional else "it was not asked for"
        self.name = "graph" if self.why_not_conditional is None else "graphs, host loop"
        self._by_host = EagerEngine(target, drafter, policy, config)
        self.steps: RoundSteps = self._by_host.steps
        self.admission: Admission = self._by_host.admission
        self.streams = Streams(target.device)
        self._captured: dict[int, CapturedRound] = {}
        self._plain: CapturedPlain | None = None
        self._requests: list[EngineRequest] = []  # the one in hand
        self._hosted = False  # it is driven by the host
        self._launched = False
        self._drafted = True  # the round that was launched: not a plain step
        self._launched_at = 0.0
        self._done = torch.cuda.Event()
        rehearse(self._rehearsal, target.device)
        self.steps.scored = None  # logits of nobody
        self.prepare()

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy from the next text on. Raises UsageError if it cannot serve this tree."""
        if id(policy) not in self._captured:
            self.steps.bind(policy)
        self.policy = policy

    def prepare(self) -> None:
        """Capture what the next text needs. Resets the caches: for the time between two texts."""
        prefill, before = self.admission.prefill, self.steps.policy
        if self.admission.chunks is None:
            self._forget()
            self.admission.chunks = capture_each(prefill.chunk, prefill.sizes, self.streams.round)
        known = self._captured.get(id(self.policy))
        if known is None:
            while len(self._captured) >= _KEPT:
                torch.cuda.synchronize(self.target.device)  # a round that nobody read may still run
                del self._captured[next(iter(self._captured))]
            bound = self.steps.policy = self.steps.bind(self.policy)
            self._forget()
            known = self._captured[id(self.policy)] = capture_round(
                self.steps, self.policy, bound, self.streams, conditional=self.why_not_conditional is None
            )
        if self.fallback is not None and self._plain is None:
            self._forget()
            self._plain = capture_plain(self.steps, self.streams)
        self.steps.policy = self._by_host.bound = known.bound
        if self.fallback is not None and known.bound is not before:
            self.fallback.forget_rounds()
        self._current = known

    @property
    def generator(self) -> torch.Generator | None:
        """What the policy in use draws from."""
        generator: torch.Generator | None = getattr(self._current.bound, "generator", None)
        return generator

    def refresh(self) -> bool:
        """See `Engine`."""
        return self.admission.refresh()

    def admit(self, request: EngineRequest) -> Round:
        """See `Engine`."""
        self.discard()
        self.prepare()
        self._requests, self._hosted = [request], request.processing is not None
        result = self._by_host.admit(request)
        if self.fallback is not None:
            self.fallback.begin_text()
        return result

    def release(self) -> None:
        """See `Engine`."""
        self._requests = []
        self._by_host.release()

    def launch_next(self) -> None:
        """Launch the next round, so that the GPU works while the host deals with the last one's tokens."""
        if self._launched or self._hosted:
            return
        self._launched = True
        self._launched_at = time.perf_counter()
        current, plain, prefix = self._current, self._plain, self.admission.prefix
        self._drafted = self.fallback is None or plain is None or self.fallback.drafts
        if plain is not None and not self._drafted:
            if prefix.pending == self.config.max_accepted:
                plain.catch_up.replay()
                prefix.pending = 0
            plain.step.replay()
            plain.result.send()
            self._watch = Watch(plain.steps.scored, self._requests)
        else:
            current.replay()
            current.result.send()
            self._watch = Watch(current.steps.scored, self._requests)
        if self.fallback is not None:
            self._done.record()

    def discard(self) -> None:
        """Forget a round that was launched and will not be read."""
        self._launched = False

    def round(self) -> Round:
        """One round, or one plain step; its tokens are certain."""
        if self._hosted:
            return self._by_host.round()
        watch, fallback = Stopwatch(), self.fallback
        self.launch_next()
        # done before it is asked for: how long it took cannot be told from when it is read
        late = fallback is not None and self._done.query()
        result = self._read_round() if self._drafted else self._read_plain()
        self._watch.tell([result])
        self._launched = False
        if fallback is not None:
            fallback.record(len(result.tokens), None if late else time.perf_counter() - self._launched_at)
        watch.lap("round")
        result.seconds = watch.seconds
        return result

    def _read_round(self) -> Round:
        calls, drafted, accept_length, *tokens = self._current.result.read()[0]
        tokens = tokens[: accept_length + 1]
        self.admission.prefix.add(tokens, pending=len(tokens))
        return Round(tokens, calls, accept_length, num_draft_tokens=drafted)

    def _read_plain(self) -> Round:
        assert self._plain is not None
        tokens, prefix = self._plain.result.read()[0], self.admission.prefix
        prefix.add(tokens, pending=prefix.pending + 1)
        return Round(tokens, is_fallback=True)

    def _rehearsal(self) -> None:
        """What will be captured, and a prompt's way in; `prepare` forgets what it leaves."""
        steps = self.steps
        self.admission.rehearse()
        steps.begin()
        steps.stop()
        steps.step()
        if self.why_not_conditional is None:
            handle = torch.zeros(1, dtype=torch.int64, device=self.target.device)
            set_graph_condition(steps.stop(), self.drafter.tree.calls, handle, max_calls=self.config.max_calls)
            if steps.sized is not None:
                set_graph_choice(steps.sized.choice(), handle)
        steps.finish_each()
        if self.fallback is not None:
            steps.plain()
            steps.catch_up()

    def _forget(self) -> None:
        """Before work that is not a text's: nothing is held, one pair waits."""
        self.admission.prefix.forget()
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.count.fill_(1)
