"""Draft trees on static buffers: levels grow by draft calls, then the best nodes are selected for verification.

EAGLE-2 (arXiv 2406.16858, section 4) as EAGLE-3 uses it: every call expands a beam of k nodes by k children each; the
nodes verified are the best of all levels by cumulative log-probability. Nothing here asks the host.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar_kernels import TreeBuffers, VerifyTree, grow_tree, select_nodes

__all__ = ["DraftTree", "VerifyTree"]


class DraftTree:
    """All candidates of one round. Slot s of a level is final once written; parents stand in lower slots.

    Attributes:
        scores, tokens, parents: [B, C] of the candidates: cumulative log-probability (-inf where no call has written),
            target token id, slot of the parent (-1: the root).
        beam_scores, beam_tokens, beam_slots: [B, k] of the newest level's beam, best first.
        beam_parents: [B, k] the rows of the logits that the beam nodes come from.
        beam_ancestors: [B, k, W] the draft-cache columns that a beam node sees, its own included. Beam node i of level
            d owns column (d - 1) k + i.
        expanded: nodes of a beam that get children, the best; k unless it is a view's.
        calls: [B] draft calls made, which is also the depth of the newest level.
    """

    def __init__(self, batch_size: int, config: TreeConfig, device: torch.device) -> None:
        k, slots = config.tree_top_k, config.num_candidates
        words = max(1, math.ceil(config.num_draft_columns / 64))
        self.config = config
        self.expanded = k
        self.scores = torch.full((batch_size, slots), -torch.inf, dtype=torch.float32, device=device)
        self.tokens = torch.zeros((batch_size, slots), dtype=torch.int64, device=device)
        self.parents = torch.full((batch_size, slots), -1, dtype=torch.int64, device=device)
        self.beam_scores = torch.zeros((batch_size, k), dtype=torch.float32, device=device)
        self.beam_tokens = torch.zeros((batch_size, k), dtype=torch.int64, device=device)
        self.beam_slots = torch.zeros((batch_size, k), dtype=torch.int64, device=device)
        self.beam_parents = torch.zeros((batch_size, k), dtype=torch.int64, device=device)
        self.beam_ancestors = torch.zeros((batch_size, k, words), dtype=torch.int64, device=device)
        self.calls = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def snapshot(self) -> DraftTree:
        """A copy on the CPU that later rounds do not change."""
        twin = object.__new__(DraftTree)
        for name, value in vars(self).items():
            setattr(twin, name, value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value)
        return twin

    def first(self, count: int, total_tokens: int, expanded: int) -> DraftTree:
        """The trees of the first rows, in the same buffers, of which so many nodes are selected and expanded."""
        view = copy.copy(self)
        view.expanded = expanded
        view.config = replace(self.config, total_tokens=total_tokens)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(view, name, value[:count])
        return view

    def start(self, logits: Tensor, d2t: Tensor | None = None) -> None:
        """Begin a round with the children of the root: logits [B, 1, V], and as in `radar_kernels.grow_tree`."""
        grow_tree(logits, self._buffers(), first=True, d2t=d2t)

    def grow(self, logits: Tensor, d2t: Tensor | None = None, alive: Tensor | None = None) -> None:
        """Add the children of the beam, logits [B, expanded, V], to the rows that are `alive` [B]."""
        grow_tree(logits, self._buffers(), first=False, alive=alive, d2t=d2t)

    def _buffers(self) -> TreeBuffers:
        return TreeBuffers(
            self.scores, self.tokens, self.parents, self.beam_scores, self.beam_tokens, self.beam_slots,
            self.beam_parents, self.beam_ancestors, self.calls,
        )  # fmt: skip

    def select(self, root_token: Tensor, counts: Tensor | None = None) -> VerifyTree:
        """The root [B] and the best `total_tokens - 1` candidates, or as many as `counts` [B] says with the root, as a
        tree; see `radar_kernels.select_nodes`."""
        config = self.config
        return select_nodes(
            self.scores, self.tokens, self.parents, root_token,
            total_tokens=config.total_tokens, tree_top_k=config.tree_top_k, counts=counts,
        )  # fmt: skip
