"""What the target accepts of a draft tree for every stop: along one text, or in distribution over its sampling.

A tree drafted to `max_calls` holds the trees of all earlier stops: stopping after call n verifies the best
`total_tokens - 1` of the candidates that n calls have written. Everything here takes B rounds at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.tree import DraftTree

__all__ = ["Candidates", "accept_lengths", "acceptance_distribution", "verified"]


@dataclass(frozen=True)
class Candidates:
    """All candidates of B rounds drafted to `max_calls`, on the CPU: scores, tokens, parents [B, C] as in `DraftTree`,
    a level after the other."""

    config: TreeConfig
    scores: Tensor
    tokens: Tensor
    parents: Tensor

    @classmethod
    def of(cls, tree: DraftTree) -> Candidates:
        """A copy that later rounds do not change."""
        parts = (tree.scores, tree.tokens, tree.parents)
        return cls(tree.config, *(part.detach().to("cpu", copy=True) for part in parts))

    @classmethod
    def stack(cls, rounds: Sequence[Candidates], config: TreeConfig) -> Candidates:
        """Rounds one below the other; `config` may be of another size, whose candidates are the same."""
        parts = ([one.scores for one in rounds], [one.tokens for one in rounds], [one.parents for one in rounds])
        return cls(config, *(torch.cat(part) for part in parts))

    def levels(self) -> Iterator[slice]:
        """Slots of depth 1 (the root's children) to max_calls."""
        k = self.config.tree_top_k
        yield slice(0, k)
        for start in range(k, self.config.num_candidates, k * k):
            yield slice(start, start + k * k)


def verified(tree: Candidates) -> Tensor:
    """Which candidates are verified when the round stops after call 1 to max_calls [B, max_calls, C] bool.

    As in `DraftTree.select`: the best by score, of equals the lower slot, and none that was never drafted.
    """
    depths = torch.empty(tree.config.num_candidates, dtype=torch.int64)
    for depth, level in enumerate(tree.levels(), start=1):
        depths[level] = depth
    scores, order = tree.scores.sort(dim=1, descending=True, stable=True)
    calls = torch.arange(1, tree.config.max_calls + 1)[:, None]
    there = (depths[order][:, None] <= calls) & (scores > -torch.inf)[:, None]  # [B, max_calls, C], best first
    best = there & (there.cumsum(2, dtype=torch.int16) < tree.config.total_tokens)
    return torch.empty_like(best).scatter_(2, order[:, None].expand_as(best), best)


def acceptance_distribution(tree: Candidates, chosen: Tensor, probabilities: Tensor) -> Tensor:
    """P(accepted length = l) for a stop after call 1 to max_calls: [B, max_calls, max_calls + 1] float64.

    Draft trees are deterministic, so a node is accepted with the target's own probability of its path, and the nodes of
    one depth exclude each other: P(length >= l) is the sum over the verified nodes at depth l. (RADAR, arXiv
    2512.14069, section "offline data", which walks every tree instead.)

    Args:
        tree: rounds drafted to `max_calls`.
        chosen: `verified(tree)`.
        probabilities: [B, C] the target's probability of each candidate's token after its parent's path, at the
            sampling temperature. Only those of candidates that some stop verifies are read.
    """
    path = torch.where(chosen.any(1), probabilities.double(), 0.0)
    at_least = torch.ones(*chosen.shape[:2], chosen.shape[1] + 1, dtype=torch.float64)
    for depth, level in enumerate(tree.levels(), start=1):
        if depth > 1:  # parents stand in lower slots, one level up
            path[:, level] *= path.gather(1, tree.parents[:, level].clamp(min=0))  # -1: never drafted
        at_least[:, :, depth] = (chosen[:, :, level].double() @ path[:, level, None])[..., 0]
    beyond = torch.nn.functional.pad(at_least[:, :, 1:], (0, 1))
    return (at_least - beyond).clamp(min=0.0)  # rounding can leave -1e-17


def accept_lengths(tree: Candidates, chosen: Tensor, continuation: Tensor) -> Tensor:
    """Draft tokens accepted when the round had stopped after call 1 to max_calls [B, max_calls] int64.

    Args:
        tree: rounds drafted to `max_calls`.
        chosen: `verified(tree)`.
        continuation: [B, max_calls] the target's tokens after the root; -1 where there is none.
    """
    rows = torch.arange(len(chosen))
    lengths = torch.zeros(chosen.shape[:2], dtype=torch.int64)
    parent, alive = torch.full_like(rows, -1), torch.ones_like(rows, dtype=torch.bool)
    for level, token in zip(tree.levels(), continuation.unbind(1), strict=True):
        here = (tree.tokens[:, level] == token[:, None]) & (tree.parents[:, level] == parent[:, None])
        alive = alive & here.any(1)
        parent = level.start + here.long().argmax(1)  # siblings differ: there is no second one
        lengths += chosen[rows, :, parent] & alive[:, None]  # a verified node's ancestors are verified
    return lengths
