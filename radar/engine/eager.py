"""The host-driven runner: Python calls each step of a round and reads its result once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from radar.config import GREEDY, SamplingParams, TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.fallback import Fallback
from radar.engine.held import HeldText
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.generation.processing import HostProcessing
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
        held: the text in the caches.
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
        self.steps = RoundSteps(target, drafter, copy.copy(policy), config)  # a copy: policies may serve two decoders
        self.profile = profile and target.device.type == "cuda"
        self.fallback = fallback
        self.held = HeldText()
        self._prefill = Prefill(target, drafter)
        self._processing: HostProcessing | None = None

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy. Raises ValueError if it cannot serve this tree."""
        if policy is not self.policy:
            self.steps.set_policy(copy.copy(policy))
            self.policy = policy
            if self.fallback is not None:
                self.fallback.forget_rounds()

    def start(
        self,
        input_ids: Tensor,
        sampling: SamplingParams = GREEDY,
        *,
        reuse_prefix: bool = False,
        processing: HostProcessing | None = None,
    ) -> Round:
        """Take a prompt [1, P] and return the first token.

        Args:
            reuse_prefix: go on from what the caches hold of this prompt.
            processing: of the scores before sampling; every round drafts then.
        """
        watch, steps, prompt = Stopwatch(synchronize=self.profile), self.steps, input_ids[0].tolist()
        reused = self.held.begin(prompt, self.target.cache, reuse=reuse_prefix)
        steps.sampler.set(sampling)
        steps.sampler.start(input_ids)
        self._prefill.run(input_ids, start=reused)
        self._processing = processing
        result = Round([], is_prefill=True, num_prompt_tokens=len(prompt), num_reused_tokens=reused)
        if processing is None:
            steps.load(self._prefill.logits, self._prefill.taps)
        else:
            logits = self._prefill.logits[0]
            token, scores = processing.choose(steps.sampler, logits, prompt)
            steps.load(self._prefill.logits, self._prefill.taps, torch.tensor([[token]], device=logits.device))
            result.logits, result.scores = logits[None].float(), scores[None]
        if self.fallback is not None:
            self.fallback.begin_text()
        result.tokens = steps.root.tolist()
        self.held.add([*prompt[reused + 1 :], *result.tokens], pending=1)
        watch.lap("prefill")
        result.seconds = watch.seconds
        return result

    def release(self) -> None:
        """Let go of a generation's processors."""
        self._processing = None

    def ahead(self) -> None:
        """Nothing: the host makes the rounds, and they start when they are asked for."""

    def round(self) -> Round:
        """One round, or one plain step; its tokens are certain."""
        fallback = None if self._processing is not None else self.fallback
        if fallback is not None and not fallback.drafts:
            return self._plain(fallback)
        watch, steps = Stopwatch(synchronize=self.profile), self.steps
        self._set_windows(self.config.total_tokens)
        steps.begin()
        watch.lap("draft")
        for _ in range(self.config.max_calls - 1):
            stop = bool(steps.stop().all())  # the host asks: one flag per draft call
            watch.lap("policy")
            if stop:
                break
            steps.step()
            watch.lap("draft")
        steps.select()
        logits = scores = None
        if self._processing is None:
            target_tokens = steps.verify()
        else:
            target_tokens, logits, scores = self._processing.walk(
                steps.sampler, steps.nodes, steps.score(), self.held.ids
            )
        watch.lap("verify")
        steps.accept(target_tokens)
        calls, accept_length, *tokens = steps.commit()[0].tolist()  # the round's one read of the result
        tokens = tokens[: accept_length + 1]
        self.held.add(tokens, pending=len(tokens))
        watch.lap("accept")
        if fallback is not None:
            fallback.record(len(tokens), sum(watch.seconds.values()))
        return Round(
            tokens,
            calls,
            accept_length,
            seconds=watch.seconds,
            num_draft_tokens=steps.num_drafted(calls),
            logits=logits,
            scores=scores,
        )

    def _plain(self, fallback: Fallback) -> Round:
        watch, steps = Stopwatch(synchronize=self.profile), self.steps
        self._set_windows(1)
        if self.held.pending == self.config.max_accepted:
            steps.catch_up()
            self.held.pending = 0
            watch.lap("draft")
        tokens = steps.plain()[0].tolist()
        self.held.add(tokens, pending=self.held.pending + 1)
        watch.lap("verify")
        fallback.record(1, sum(watch.seconds.values()))
        return Round(tokens, seconds=watch.seconds, is_fallback=True)

    def _set_windows(self, rows: int) -> None:
        length, config = len(self.held.ids) - 1, self.config
        self.target.cache.set_window(length + rows)
        self.drafter.cache.set_window(length + config.max_accepted + config.num_draft_columns)
