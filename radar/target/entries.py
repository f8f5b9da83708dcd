"""Nodes of several rows' trees as entries of one batch, each a node alone: as many as are verified, no padding."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from radar.target.attention import Seen, SharedPaths
from radar.target.pages import PagedKVCache
from radar_kernels import Share, VerifyTree
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import Alike

__all__ = ["Entries", "Rider"]


class Rider(NamedTuple):
    """Tokens of a prompt that are taken in beside a verification.

    Attributes:
        input_ids: [1, R] which follow the committed ones.
        depths, ancestors: [1, R] and [1, R, W] of them, as `TargetModel.chain` says.
        cache: of the prompt's row.
    """

    input_ids: Tensor
    depths: Tensor
    ancestors: Tensor
    cache: PagedKVCache


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
    def of(
        cls, tree: VerifyTree, share: Share, cache: PagedKVCache, rider: Rider | None = None, *, by_paths: bool
    ) -> Entries:
        """Those that a share names.

        Args:
            tree: of B rows with M nodes each.
            share: of the same nodes.
            cache: of the B rows.
            rider: whose tokens are the entries behind.
            by_paths: what nodes see is said by their paths.
        """
        most = tree.draft_tokens.shape[1]
        real, at = share.nodes >= 0, share.nodes.clamp(min=0)
        own, ancestors, starts = cache.entries(at // most, real), tree.ancestors.flatten(0, 1)[at], share.starts
        ids, depths, place = tree.draft_tokens.flatten()[at], tree.depths.flatten()[at], torch.where(real, at % most, 0)
        if rider is not None:
            count, before, order = rider.input_ids.shape[1], len(at), rider.depths[0]
            both = ancestors, rider.ancestors[0]
            ancestors = torch.cat([pad(x, (0, max(y.shape[1] for y in both) - x.shape[1])) for x in both])
            ids = torch.cat((ids, rider.input_ids[0]))
            depths, place = torch.cat((depths, order)), torch.cat((place, order))
            # two texts more: of the entries of no node, which have none, and the prompt
            starts = torch.cat((starts, starts.new_full((1,), before), starts.new_full((1,), before + count)))
            own, most = _with(own, rider.cache, count), max(most, count)
        words = ancestors[:, None]
        seen: Seen = words
        if by_paths:  # as `TargetModel.verify` does, bit for bit
            seen = SharedPaths(ancestor_paths(words, most), Alike(starts, most))
        return cls(ids[:, None], depths[:, None], seen, own.length + place, own)


def _with(cache: PagedKVCache, row: PagedKVCache, count: int) -> PagedKVCache:
    """The cache of a batch, and behind it so many entries with a row's text."""
    view = copy.copy(cache)
    view.block_table = torch.cat((cache.block_table, row.block_table.expand(count, -1)))
    view.length = torch.cat((cache.length, row.length.expand(count)))
    return view
