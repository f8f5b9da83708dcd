"""Walk a verified tree along the target's own tokens: what is accepted, and what comes next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from radar.tree import VerifyTree, pack_bits

__all__ = ["Acceptance", "accept"]


class Acceptance(NamedTuple):
    """Result of one verification.

    Attributes:
        path: [B, A] nodes from the root down the accepted branch; entries past `accept_length` are 0.
        tokens: [B, A] the target's token after each of them: the accepted drafts, then the next token at index
            `accept_length`; entries past it are meaningless.
        accept_length: [B] accepted draft tokens, the next token excluded.
        next_token: [B] the target's token after the accepted branch: the root of the next round.
    """

    path: Tensor
    tokens: Tensor
    accept_length: Tensor
    next_token: Tensor


def accept(tree: VerifyTree, target_tokens: Tensor, max_accepted: int) -> Acceptance:
    """Follow the target while its token is in the tree.

    Args:
        tree: the verified nodes.
        target_tokens: [B, N] the token that the target chooses after each node's path.
        max_accepted: A, the longest possible path with its root.

    A node is accepted if it and all its ancestors hold the token that the target chose after their parents. Siblings
    hold different tokens, so the accepted nodes form one branch.
    """
    batch, nodes = target_tokens.shape
    matches = tree.valid & (tree.draft_tokens == target_tokens.gather(1, tree.parents))
    is_root = torch.arange(nodes, device=matches.device) == 0
    wrong = pack_bits(~(matches | is_root))
    accepted = ((tree.ancestors & wrong[:, None]) == 0).all(dim=-1) & (matches | is_root)
    # nodes are sorted by depth, so the n-th accepted node is the n-th of the branch; the rest goes to a spare column
    rank = torch.where(accepted, accepted.cumsum(dim=1) - 1, max_accepted)
    path = torch.zeros((batch, max_accepted + 1), dtype=torch.int64, device=rank.device)
    node = torch.arange(nodes, device=rank.device).expand(batch, -1)
    path = path.scatter(1, rank, torch.where(accepted, node, 0))[:, :max_accepted]
    accept_length = accepted.sum(dim=1) - 1
    tokens = target_tokens.gather(1, path)
    next_token = tokens.gather(1, accept_length[:, None])[:, 0]
    return Acceptance(path, tokens, accept_length, next_token)
