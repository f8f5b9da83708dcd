"""What the target accepts of a draft tree for every stop: along one text, or in distribution over its sampling.

A tree drafted to `max_calls` holds the trees of all earlier stops: stopping after call n verifies the best
`total_tokens - 1` of the candidates that n calls have written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radar.tree import DraftTree

__all__ = ["accept_lengths", "acceptance_distribution", "candidate_depths", "verified"]


def candidate_depths(tree: DraftTree) -> Tensor:
    """Depth of every candidate slot [C]: 1 for the root's children."""
    k, calls = tree.config.tree_top_k, tree.config.max_calls
    return torch.cat((torch.ones(k, dtype=torch.int64), torch.arange(2, calls + 1).repeat_interleave(k * k)))


def verified(tree: DraftTree) -> Tensor:
    """Which candidates are verified when the round stops after call 1 to max_calls [max_calls, C] bool, first row.

    As in `DraftTree.select`: the best by score, of equals the lower slot, and none that was never drafted.
    """
    scores, order = tree.scores[0].sort(descending=True, stable=True)
    calls = torch.arange(1, tree.config.max_calls + 1)[:, None]
    there = (candidate_depths(tree)[order] <= calls) & (scores > -torch.inf)  # [max_calls, C], best first
    chosen = torch.empty_like(there)
    chosen[:, order] = there & (there.cumsum(1) < tree.config.total_tokens)
    return chosen


def acceptance_distribution(tree: DraftTree, probabilities: Tensor) -> Tensor:
    """P(accepted length = l) for a stop after call 1 to max_calls: [max_calls, max_calls + 1] float64, first batch row.

    Draft trees are deterministic, so a node is accepted with the target's own probability of its path, and the nodes of
    one depth exclude each other: P(length >= l) is the sum over the verified nodes at depth l. (RADAR, arXiv
    2512.14069, section "offline data", which walks every tree instead.)

    Args:
        tree: a round drafted to `max_calls`.
        probabilities: [C] the target's probability of each candidate's token after its parent's path, at the sampling
            temperature. Only those of candidates that some stop verifies are read.
    """
    chosen, depths, calls = verified(tree), candidate_depths(tree), tree.config.max_calls
    union, parents = chosen.any(0), tree.parents[0]
    path = torch.where(union, probabilities.double(), 0.0)
    for depth in range(2, calls + 1):  # parents stand in lower slots, one level up
        level = depths == depth
        path[level] *= path[parents[level]]
    by_depth = torch.zeros(len(depths), calls + 1, dtype=torch.float64)
    by_depth[torch.arange(len(depths)), depths] = path
    at_least = chosen.double() @ by_depth  # [calls, calls + 1]
    at_least[:, 0] = 1.0
    beyond = torch.nn.functional.pad(at_least[:, 1:], (0, 1))
    return (at_least - beyond).clamp(min=0.0)  # rounding can leave -1e-17


def accept_lengths(tree: DraftTree, continuation: Sequence[int]) -> Tensor:
    """Draft tokens accepted when the round had stopped after call 1 to max_calls [max_calls], for the first batch row.

    Args:
        tree: a round drafted to `max_calls`.
        continuation: the target's tokens after the root, as many as are known.
    """
    chosen, depths = verified(tree), candidate_depths(tree)
    lengths = torch.zeros(tree.config.max_calls, dtype=torch.int64)
    parent = -1
    for depth, token in enumerate(continuation[: tree.config.max_calls], start=1):
        here = (depths == depth) & (tree.tokens[0] == token) & (tree.parents[0] == parent)
        found = here.nonzero().flatten().tolist()
        if not found:
            break
        parent = found[0]
        lengths += chosen[:, parent].long()  # a verified node's ancestors are verified
    return lengths
