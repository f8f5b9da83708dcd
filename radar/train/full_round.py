"""A round drafted to the end, with the target's scores of all its candidates, as work that a graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.draft.tree import VerifyTree
from radar.engine.steps import RoundSteps
from radar.policy.base import FixedDepth
from radar.target.model import TargetModel
from radar_kernels import Acceptance

__all__ = ["FullRound", "entropy"]


def entropy(logits: Tensor) -> Tensor:
    """Nats [...] of the distributions of logits [..., V]; rounding never makes one negative."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).clamp(max=0.0)


class FullRound(RoundSteps):
    """Drafts `max_calls` times and verifies the root and every beam node, 1 + k (max_calls - 1) rows.

    Every candidate is a beam node's child or the root's, so these rows score all candidates: what any stop, with a tree
    of any size, would have had accepted follows from them.

    Args:
        target: for so many rows at least.
        config: the tree's shape; how many nodes a decoder verifies does not matter here.
        temperature: of `probabilities`.
        one_token: keep nothing but the root, so that the next round begins one token later.

    Attributes:
        entropies: [B] of the distribution that the root was taken from.
        probabilities: [B, C] the target's probability of every candidate after its parent's path, above temperature 0.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, config: TreeConfig, *, temperature: float, one_token: bool = False
    ) -> None:
        super().__init__(target, drafter, FixedDepth(config.max_calls), config)
        batch, device = self.root.shape[0], target.device
        k, levels = config.tree_top_k, config.max_calls - 1
        rows = self.num_rows(config)
        self.temperature, self.one_token = temperature, one_token
        self._tokens = torch.zeros((batch, rows), dtype=torch.int64, device=device)
        self._slots = torch.full((batch, rows), -1, dtype=torch.int64, device=device)  # of the candidates
        self._valid = torch.ones((batch, rows), dtype=torch.bool, device=device)
        self._ancestors = torch.zeros((batch, rows, -(-rows // 64)), dtype=torch.int64, device=device)
        self._ancestors[:, 0, 0] = 1
        depths = torch.cat((torch.zeros(1, dtype=torch.int64), torch.arange(1, levels + 1).repeat_interleave(k)))
        self._depths = depths.to(device).expand(batch, rows).contiguous()
        self._rows = torch.arange(rows, device=device).expand(batch, rows)
        self._row_of = torch.zeros((batch, config.num_candidates + 1), dtype=torch.int64, device=device)  # by slot + 1

    @staticmethod
    def num_rows(config: TreeConfig) -> int:
        """Rows of the verification."""
        return 1 + config.num_draft_columns

    def run(self) -> Tensor:
        """The whole round; returns what `commit` does."""
        self.begin()
        for level in range(1, self.config.max_calls):
            self._keep_beam(level)
            self.step()
        return self.finish()

    def _keep_beam(self, level: int) -> None:
        tree, k = self.drafter.tree, self.config.tree_top_k
        here = slice(1 + (level - 1) * k, 1 + level * k)
        self._tokens[:, here] = tree.beam_tokens
        self._slots[:, here] = tree.beam_slots
        self._valid[:, here] = tree.beam_scores > -torch.inf
        words = tree.beam_ancestors  # of columns that start at the first beam node: here the root stands before it
        shifted = words << 1
        shifted[..., 1:] |= (words[..., :-1] >> 63) & 1
        shifted[..., 0] |= 1
        width = min(self._ancestors.shape[-1], words.shape[-1])
        self._ancestors[:, here, :width] = shifted[..., :width]
        if self._ancestors.shape[-1] > width:
            self._ancestors[:, here, width] = (words[..., -1] >> 63) & 1

    def select(self) -> None:
        """The root and all beam nodes."""
        self._tokens[:, 0] = self.root
        self._row_of.scatter_(1, self._slots + 1, self._rows)
        parents = self.drafter.tree.parents.gather(1, self._slots.clamp(min=0))
        parents = self._row_of.gather(1, parents + 1)
        parents[:, 0] = 0
        self.nodes = VerifyTree(self._tokens, parents, self._depths, self._valid, self._ancestors)

    def verify(self) -> Tensor:
        """The target's token after each node [B, N]; keeps what it makes of the candidates."""
        nodes, tree = self.nodes, self.drafter.tree
        logits = self.score()
        self._entropies = entropy(logits)
        if self.temperature > 0:
            log_probs = (logits.float() / self.temperature).log_softmax(-1)
            rows = self._row_of.gather(1, tree.parents + 1)
            self.probabilities = log_probs.flatten(1).gather(1, rows * log_probs.shape[-1] + tree.tokens).exp()
        indices = self.target.cache.length[:, None] + nodes.depths + 1  # of the tokens to come, in the text
        return self.sampler.sample(logits, indices, nodes.draft_tokens, nodes.ancestors)

    def accept(self, target_tokens: Tensor) -> None:
        """As in `RoundSteps`, or the root alone."""
        super().accept(target_tokens)
        if self.one_token:
            found = self._accepted
            first = found.tokens[:, 0].contiguous()
            self._accepted = Acceptance(
                torch.zeros_like(found.path), found.tokens, torch.zeros_like(found.accept_length), first
            )

    def commit(self) -> Tensor:
        """As in `RoundSteps`; a path longer than the tree that a decoder verifies is kept too."""
        accepted = self._accepted
        last = accepted.path.gather(1, accepted.accept_length[:, None])
        self.entropies = self._entropies.gather(1, last)[:, 0]
        return super().commit()
