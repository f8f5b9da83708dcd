"""The steps of a round on static buffers: what the host calls one by one, and what a graph can capture."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.drafter import Drafter
from radar.policy.base import RoundSignals, StopPolicy
from radar.sampling import Sampler
from radar.target import TargetModel
from radar.verify import accept

__all__ = ["RoundSteps"]


class RoundSteps:
    """Draft, decide, verify, accept, commit (RADAR, arXiv 2512.14069). No step asks the host.

    A round is `begin`, then `step` until `stop` says so or `max_calls` are made, then `finish`, which is `select`,
    `verify`, `accept` and `commit`.

    Args:
        target, drafter, policy: on one device.
        config: the tree's shape.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig) -> None:
        batch, device = target.cache.length.shape[0], target.device
        self.target = target
        self.drafter = drafter
        self.config = config
        self.sampler = Sampler(batch, target.vocab_size, device)
        # what the last verification leaves for the next draft: its new tokens, their features, how many
        self.tokens = torch.zeros((batch, config.max_accepted), dtype=torch.int64, device=device)
        self.taps = torch.zeros(
            (batch, config.max_accepted, drafter.draft.fc.in_features), dtype=target.dtype, device=device
        )
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.root = torch.zeros(batch, dtype=torch.int64, device=device)
        self.signals = RoundSignals(torch.full_like(self.root, -1), torch.zeros_like(self.root))
        self.set_policy(policy)

    def set_policy(self, policy: StopPolicy) -> None:
        attach = getattr(policy, "attach", None)
        if attach is not None:
            attach(self.signals)
        policy.bind(self.root.shape[0], self.config, self.target.device)
        self.policy = policy

    def load(self, logits: Tensor, taps: Tensor) -> None:
        """Take the scores of the prompt's successor [B, V], and the taps of the prompt's last position [B, 1, taps]."""
        token = self.sampler.sample(logits[:, None], self.target.cache.length[:, None])
        self.sampler.commit(token, self.count.fill_(1))
        self.root.copy_(token[:, 0])
        self.tokens[:, :1] = token
        self.taps[:, :1] = taps
        self.signals.accept_length.fill_(-1)

    def begin(self) -> None:
        """Draft call 1."""
        if hasattr(self.policy, "attach"):
            torch.add(self.target.cache.length, 1, out=self.signals.context_length)
        self.policy.reset()
        self.drafter.begin(self.tokens, self.taps, self.count)

    def stop(self) -> Tensor:
        """Whether the newest level ends the drafting: flags [B]."""
        return self.policy.stop(self.drafter.tree.beam_scores)

    def step(self) -> None:
        """One more draft call."""
        self.drafter.step()

    def select(self) -> None:
        """Choose the best nodes of all levels."""
        self._nodes = self.drafter.tree.select(self.root)

    def verify(self) -> Tensor:
        """Run the target over the selected nodes: its token after each node [B, N]."""
        nodes = self._nodes
        indices = self.target.cache.length[:, None] + nodes.depths + 1  # of the tokens to come, in the text
        logits, self._node_taps = self.target.verify(nodes.draft_tokens, nodes.depths, nodes.ancestors)
        return self.sampler.sample(logits, indices, nodes.draft_tokens, nodes.ancestors)

    def accept(self, target_tokens: Tensor) -> None:
        """Walk the tree along the target's tokens."""
        self._accepted = accept(self._nodes, target_tokens, self.config.max_accepted)

    def commit(self) -> Tensor:
        """Keep what was accepted, and leave the next round's input.

        Returns:
            [B, 2 + A]: draft calls, accept_length, and the round's tokens, of which the first accept_length + 1 count.
        """
        result = self._accepted
        count = result.accept_length + 1
        self.target.cache.commit(result.path, count)
        self.sampler.commit(result.tokens, count)
        self.tokens.copy_(result.tokens)
        self.taps.copy_(self._node_taps.gather(1, result.path[..., None].expand_as(self.taps)))
        self.count.copy_(count)
        self.signals.accept_length.copy_(result.accept_length)
        self.root.copy_(result.next_token)
        return torch.cat((self.drafter.tree.calls[:, None], result.accept_length[:, None], result.tokens), dim=1)

    def finish(self) -> Tensor:
        """All that follows the drafting; returns what `commit` does."""
        self.select()
        self.accept(self.verify())
        return self.commit()
