"""The host-driven runner: Python calls each step of a round and reads its result once."""

from __future__ import annotations

import copy

from torch import Tensor

from radar.config import TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
from radar.sampling import GREEDY, SamplingParams
from radar.target import TargetModel

__all__ = ["EagerEngine"]


class EagerEngine:
    """Runs `RoundSteps` from the host, which it asks in two places: for the stop flag after a draft call, and for the
    result at the end of the round.

    Args:
        target, drafter, policy: on one device.
        config: the tree's shape.
        profile: wait for the GPU at every part, so that the times by part are true (and the round slower).
    """

    name = "eager"

    def __init__(
        self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig, *, profile: bool = False
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.config = config
        self.policy = policy
        self.steps = RoundSteps(target, drafter, copy.copy(policy), config)  # a copy: policies may serve two decoders
        self.profile = profile and target.device.type == "cuda"
        self._prefill = Prefill(target, drafter)
        self._length = 0  # of the committed text, as the host knows it

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy. Raises ValueError if it cannot serve this tree."""
        if policy is not self.policy:
            self.steps.set_policy(copy.copy(policy))
            self.policy = policy

    def start(self, input_ids: Tensor, sampling: SamplingParams = GREEDY) -> Round:
        """Take a prompt [1, P] and return the first token."""
        watch = Stopwatch(synchronize=self.profile)
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.sampler.set(sampling)
        self.steps.sampler.start(input_ids)
        self._prefill.run(input_ids)
        self.steps.load(self._prefill.logits, self._prefill.taps)
        self._length = input_ids.shape[1]
        tokens = self.steps.root.tolist()
        watch.lap("prefill")
        return Round(tokens, is_prefill=True, seconds=watch.seconds)

    def ahead(self) -> None:
        """Nothing: the host makes the rounds, and they start when they are asked for."""

    def round(self) -> Round:
        """One round; its tokens are certain."""
        watch, steps = Stopwatch(synchronize=self.profile), self.steps
        self.target.cache.set_window(self._length + self.config.total_tokens)
        self.drafter.cache.set_window(self._length + self.config.max_accepted + self.config.num_draft_columns)
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
        target_tokens = steps.verify()
        watch.lap("verify")
        steps.accept(target_tokens)
        calls, accept_length, *tokens = steps.commit()[0].tolist()  # the round's one read of the result
        self._length += accept_length + 1
        watch.lap("accept")
        return Round(tokens[: accept_length + 1], calls, accept_length, seconds=watch.seconds)
