"""Nodes of several rows' trees as entries of one batch, each a node alone: as many as are verified, no padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from radar.target.attention import Seen, SharedPaths
from radar.target.pages import PagedKVCache
from radar_kernels import Share, VerifyTree
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import Alike

__all__ = ["Entries"]


class Entries(NamedTuple):
    """What a forward of T entries takes, [T, 1] of each; an entry of no node writes where nobody reads.

    Attributes:
        input_ids, depths: of the nodes.
        seen: what they see of their trees.
        start: [T] where their keys and values go to.
        cache: of their texts, a row an entry.
    """

    input_ids: Tensor
    depths: Tensor
    seen: Seen
    start: Tensor
    cache: PagedKVCache

    @classmethod
    def of(cls, tree: VerifyTree, share: Share, cache: PagedKVCache) -> Entries:
        """Those that a share names.

        Args:
            tree: of B rows with M nodes each.
            share: of the same nodes.
            cache: of the B rows.
        """
        most = tree.draft_tokens.shape[1]
        real, at = share.nodes >= 0, share.nodes.clamp(min=0)
        row, ancestors = at // most, tree.ancestors.flatten(0, 1)[at][:, None]
        own = cache.entries(row, real)
        seen: Seen = ancestors
        if at.device.type == "cuda":  # as `TargetModel.verify` does, bit for bit
            seen = SharedPaths(ancestor_paths(ancestors, most), Alike(share.starts, most))
        start = own.length + torch.where(real, at % most, 0)
        return cls(tree.draft_tokens.flatten()[at][:, None], tree.depths.flatten()[at][:, None], seen, start, own)
