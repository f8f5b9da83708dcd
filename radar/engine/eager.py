"""The host-driven runner: Python calls each step of a round and reads its result once."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.drafter import Drafter
from radar.engine.prefill import prefill
from radar.metrics import Round, Stopwatch
from radar.policy.base import StopPolicy
from radar.target import TargetModel
from radar.verify import accept

__all__ = ["EagerEngine"]


class EagerEngine:
    """Draft, decide, verify, accept, commit (RADAR, arXiv 2512.14069, figure 2), one Python call each.

    The step functions never ask the host. This runner does, in two places: for the stop flag after a draft call, and
    for the result at the end of the round.

    Args:
        target, drafter, policy: bound to one device.
        config: the tree's shape.
        profile: wait for the GPU at every part, so that the times by part are true (and the round slower).
    """

    name = "eager"

    def __init__(
        self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig, *, profile: bool = False
    ) -> None:
        batch, device = target.cache.length.shape[0], target.device
        taps = drafter.draft.fc.in_features
        self.target = target
        self.drafter = drafter
        self.policy = policy
        self.config = config
        self.profile = profile and device.type == "cuda"
        # what the last verification leaves for the next draft: its new tokens, their features, how many
        self.tokens = torch.zeros((batch, config.max_accepted), dtype=torch.int64, device=device)
        self.taps = torch.zeros((batch, config.max_accepted, taps), dtype=target.dtype, device=device)
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.root = torch.zeros(batch, dtype=torch.int64, device=device)
        self._length = 0  # of the committed text, as the host knows it
        policy.bind(batch, config, device)

    def start(self, input_ids: Tensor) -> Round:
        """Take a prompt [1, P] and return the target's first token."""
        watch = Stopwatch(synchronize=self.profile)
        self.target.cache.reset()
        self.drafter.reset()
        token, taps = prefill(self.target, input_ids, self.drafter)
        self.root.copy_(token)
        self.tokens[:, 0] = token
        self.taps[:, :1] = taps
        self.count.fill_(1)
        self._length = input_ids.shape[1]
        tokens = token.tolist()
        watch.lap("prefill")
        return Round(tokens, is_prefill=True, seconds=watch.seconds)

    def round(self) -> Round:
        """One round; its tokens are certain."""
        watch = Stopwatch(synchronize=self.profile)
        tree = self.drafter.tree
        self.target.cache.set_window(self._length + self.config.total_tokens)
        self.drafter.cache.set_window(self._length + self.config.max_accepted + self.config.num_draft_columns)
        self.policy.reset()
        self.drafter.begin(self.tokens, self.taps, self.count)
        watch.lap("draft")
        for _ in range(self.config.max_calls - 1):
            stop = bool(self.policy.stop(tree.beam_scores).all())  # the host asks: one flag per draft call
            watch.lap("policy")
            if stop:
                break
            self.drafter.step()
            watch.lap("draft")
        nodes = tree.select(self.root)
        positions = self.target.cache.length[:, None] + nodes.depths
        out = self.target.forward(nodes.draft_tokens, positions, nodes.ancestors)
        target_tokens = self.target.logits(out.hidden_states).argmax(dim=-1)
        watch.lap("verify")
        result = accept(nodes, target_tokens, self.config.max_accepted)
        self.target.cache.commit(result.path, result.accept_length + 1)
        self.tokens.copy_(result.tokens)
        taps = out.aux_hidden_states
        self.taps.copy_(taps.gather(1, result.path[..., None].expand(-1, -1, taps.shape[-1])))
        self.count.copy_(result.accept_length + 1)
        self.root.copy_(result.next_token)
        report = torch.cat((tree.calls[:, None], result.accept_length[:, None], result.tokens), dim=1)
        calls, accept_length, *tokens = report[0].tolist()  # the round's one read of the result
        self._length += accept_length + 1
        watch.lap("accept")
        return Round(tokens[: accept_length + 1], calls, accept_length, seconds=watch.seconds)
