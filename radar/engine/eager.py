"""The host-driven runner: Python calls each step of a round and reads its result once."""

from __future__ import annotations

from torch import Tensor

from radar.config import TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.prefill import prefill
from radar.engine.steps import RoundSteps
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
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
        self.steps = RoundSteps(target, drafter, policy, config)
        self.profile = profile and target.device.type == "cuda"
        self._length = 0  # of the committed text, as the host knows it

    def start(self, input_ids: Tensor) -> Round:
        """Take a prompt [1, P] and return the target's first token."""
        watch = Stopwatch(synchronize=self.profile)
        self.target.cache.reset()
        self.drafter.reset()
        token, taps = prefill(self.target, input_ids, self.drafter)
        self.steps.load(token, taps)
        self._length = input_ids.shape[1]
        tokens = token.tolist()
        watch.lap("prefill")
        return Round(tokens, is_prefill=True, seconds=watch.seconds)

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
        target_tokens = steps.verify()
        watch.lap("verify")
        calls, accept_length, *tokens = steps.finish(target_tokens)[0].tolist()  # the round's one read of the result
        self._length += accept_length + 1
        watch.lap("accept")
        return Round(tokens[: accept_length + 1], calls, accept_length, seconds=watch.seconds)
