"""Walk a verified tree along the target's own tokens: what is accepted, and what comes next."""

from __future__ import annotations

from torch import Tensor

from radar.draft.tree import VerifyTree
from radar_kernels import Acceptance, accept_nodes

__all__ = ["Acceptance", "accept"]


def accept(tree: VerifyTree, target_tokens: Tensor, max_accepted: int) -> Acceptance:
    """Follow the target while its token is in the tree; see `radar_kernels.accept_nodes`.

    Args:
        tree: the verified nodes.
        target_tokens: [B, N] the token that the target chooses after each node's path.
        max_accepted: A, the longest possible path with its root.
    """
    return accept_nodes(tree.draft_tokens, tree.parents, tree.valid, target_tokens, max_accepted=max_accepted)
