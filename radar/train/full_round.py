"""A round drafted to the end, with the target's scores of all its candidates, as work that a graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.steps import RoundSteps
from radar.policy.base import FixedDepth
from radar.target.model import TargetModel
from radar_kernels import Acceptance, select_nodes

__all__ = ["FullRound"]


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
        probabilities: [B, C] the target's probability of every candidate after its parent's path, above temperature 0.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, config: TreeConfig, *, temperature: float, one_token: bool = False
    ) -> None:
        super().__init__(target, drafter, FixedDepth(config.max_calls), config)
        self.temperature, self.one_token = temperature, one_token

    @staticmethod
    def num_rows(config: TreeConfig) -> int:
        """Rows of the verification."""
        return 1 + max(1, config.num_draft_columns)  # no tree is smaller than two

    def run(self) -> Tensor:
        """The whole round; returns what `commit` does."""
        self.begin()
        for _ in range(self.config.max_calls - 1):
            self.step()
        return self.finish()

    def select(self) -> None:
        """The root and all beam nodes: the candidates that have children."""
        tree, rows = self.drafter.tree, self.num_rows(self.config)
        beam = torch.zeros((len(tree.scores), 1 + tree.scores.shape[1]), dtype=torch.bool, device=tree.scores.device)
        beam = beam.scatter_(1, tree.parents + 1, True)[:, 1:] & (tree.scores > -torch.inf)
        scores = tree.scores.masked_fill(~beam, -torch.inf)
        k = self.config.tree_top_k
        self.nodes = select_nodes(scores, tree.tokens, tree.parents, self.root, total_tokens=rows, tree_top_k=k)
        # rows are in the order of slots; where beam nodes are few the first others fill up, as invalid rows
        spare = ~beam & ((~beam).cumsum(1) < rows - beam.sum(1, keepdim=True))
        self._row_of = torch.nn.functional.pad((beam | spare).cumsum(1), (1, 0))  # by slot + 1

    def verify(self) -> Tensor:
        """The target's token after each node [B, N]; keeps what it makes of the candidates."""
        nodes, tree = self.nodes, self.drafter.tree
        logits = self.score()
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
            path, tokens, length, _ = self._accepted
            self._accepted = Acceptance(
                torch.zeros_like(path), tokens, torch.zeros_like(length), tokens[:, 0].contiguous()
            )
