"""The host-driven runner: Python calls each step of a round and reads its result once."""

from __future__ import annotations

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.admission import Admission
from radar.engine.base import EngineRequest
from radar.engine.fallback import Fallback
from radar.engine.logprobs import Watch
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel

__all__ = ["EagerEngine"]


class EagerEngine:
    """Runs `RoundSteps` from the host, which it asks in two places: for the stop flag after a draft call, and for the
    result at the end of the round.

    Args:
        target, drafter, policy: on one device.
        config: the tree's shape.
        profile: wait for the GPU at every part, so that the times by part are true (and the round slower).
        fallback: chooses between rounds and plain steps; None: rounds alone.

    Attributes:
        steps: of a round.
        admission: takes prompts; its `prefix` is the text in the caches.
        bound: what decides from the next text on, see `RoundSteps.bind`.
    """

    name = "eager"

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter,
        policy: StopPolicy,
        config: TreeConfig,
        *,
        profile: bool = False,
        fallback: Fallback | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.config = config
        self.policy = policy
        self.steps = RoundSteps(target, drafter, policy, config)
        self.profile = profile and target.device.type == "cuda"
        self.fallback = fallback
        self.admission = Admission(target, drafter, self.steps.sampler, profile=self.profile)
        self._requests: list[EngineRequest] = []  # the one in hand
        self.bound = self.steps.policy

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy from the next text on. Raises UsageError if it cannot serve this tree."""
        if policy is not self.policy:
            self.bound = self.steps.bind(policy)
            self.policy = policy

    def refresh(self) -> bool:
        """See `Engine`."""
        return self.admission.refresh()

    def admit(self, request: EngineRequest) -> Round:
        """See `Engine`."""
        self._requests = [request]
        if self.steps.policy is not self.bound:
            self.steps.policy = self.bound
            if self.fallback is not None:
                self.fallback.forget_rounds()
        result = self.admission.admit(request)
        self.steps.load(self.admission.token, self.admission.prefill.taps)
        if self.fallback is not None:
            self.fallback.begin_text()
        return result

    def release(self) -> None:
        """See `Engine`."""
        self._requests = []

    def launch_next(self) -> None:
        """Nothing: the host makes the rounds, and they start when they are asked for."""

    def round(self) -> Round:
        """One round, or one plain step; its tokens are certain."""
        processing = self._requests[0].processing if self._requests else None
        fallback = None if processing is not None else self.fallback
        if fallback is not None and not fallback.drafts:
            return self._plain(fallback)
        watch, steps, prefix = Stopwatch(synchronize=self.profile), self.steps, self.admission.prefix
        self._set_windows(steps.most_nodes)
        steps.begin()
        watch.lap("draft")
        most = self.config.max_calls
        for call in range(1, most + (steps.sized is not None)):  # a choice of nodes sees the last level too
            stop = bool(steps.stop().all())  # the host asks: one flag per draft call
            watch.lap("policy")
            if stop or call == most:
                break
            steps.step()
            watch.lap("draft")
        if processing is None:
            steps = steps.chosen()
            watch.lap("policy")
        steps.select()
        logits = scores = None
        if processing is None:
            target_tokens = steps.verify()
        else:
            target_tokens, logits, scores = processing.walk(steps.sampler, steps.nodes, steps.score(), prefix.ids)
        watch.lap("verify")
        steps.accept(target_tokens)
        calls, drafted, accept_length, *tokens = steps.commit()[0].tolist()  # the round's one read of the result
        tokens = tokens[: accept_length + 1]
        self.steps.nodes, self.steps.scored = steps.nodes, steps.scored
        prefix.add(tokens, pending=len(tokens))
        watch.lap("accept")
        if fallback is not None:
            fallback.record(len(tokens), sum(watch.seconds.values()))
        return self._watched(
            Round(
                tokens,
                calls,
                accept_length,
                seconds=watch.seconds,
                num_draft_tokens=drafted,
                logits=logits,
                scores=scores,
            )
        )

    def _watched(self, made: Round) -> Round:
        """The round, with its log-probabilities if they were asked for."""
        Watch(self.steps.scored, self._requests).tell([made])
        return made

    def _plain(self, fallback: Fallback) -> Round:
        watch, steps, prefix = Stopwatch(synchronize=self.profile), self.steps, self.admission.prefix
        self._set_windows(1)
        if prefix.pending == self.config.max_accepted:
            steps.catch_up()
            prefix.pending = 0
            watch.lap("draft")
        tokens = steps.plain()[0].tolist()
        prefix.add(tokens, pending=prefix.pending + 1)
        watch.lap("verify")
        fallback.record(1, sum(watch.seconds.values()))
        return self._watched(Round(tokens, seconds=watch.seconds, is_fallback=True))

    def _set_windows(self, rows: int) -> None:
        length = len(self.admission.prefix.ids) - 1
        self.target.cache.set_window(length + rows)
        self.drafter.cache.set_window(length + self.drafter.num_scratch_rows)
