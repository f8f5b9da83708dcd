"""Draft trees on static buffers: levels grow by draft calls, then the best nodes are selected for verification.

EAGLE-2 (arXiv 2406.16858, section 4) as EAGLE-3 uses it: every call expands a beam of k nodes by k children each; the
nodes verified are the best of all levels by cumulative log-probability. Nothing here asks the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar_kernels import TopkConfidence, TreeBuffers, grow_tree

__all__ = ["DraftTree", "VerifyTree", "causal_ancestors", "pack_bits"]


class VerifyTree(NamedTuple):
    """The nodes of one verification, parents before children. Node 0 is the root: the last token that is certain.

    Attributes:
        draft_tokens: [B, N] target token ids.
        parents: [B, N] node index; the root's is 0.
        depths: [B, N] distance from the root.
        valid: [B, N] false for padding, when fewer nodes were drafted than are verified.
        ancestors: [B, N, W] int64 words; bit c of word w says that the node descends from, or is, node 64 w + c.
    """

    draft_tokens: Tensor
    parents: Tensor
    depths: Tensor
    valid: Tensor
    ancestors: Tensor


def pack_bits(flags: Tensor) -> Tensor:
    """Boolean columns [..., C] -> int64 words [..., ceil(C / 64)]; column 64 w + c is bit c of word w."""
    columns = flags.shape[-1]
    words = math.ceil(columns / 64)
    padded = torch.nn.functional.pad(flags.to(torch.int64), (0, words * 64 - columns))
    shifts = torch.arange(64, device=flags.device)
    return (padded.view(*flags.shape[:-1], words, 64) << shifts).sum(
        -1
    )  # bit 63 is the sign: the sum wraps as it should


def causal_ancestors(rows: int, device: torch.device) -> Tensor:
    """Ancestor words [1, rows, W] of a chain: row i sees columns 0 to i."""
    return pack_bits(torch.ones(rows, rows, dtype=torch.bool, device=device).tril())[None]


class DraftTree:
    """All candidates of one round. Slot s of a level is final once written; parents stand in lower slots.

    Attributes:
        scores, tokens, parents: [B, C] of the candidates: cumulative log-probability (-inf where no call has written),
            target token id, slot of the parent (-1: the root).
        beam_scores, beam_tokens, beam_slots: [B, k] of the newest level's beam, best first.
        beam_ancestors: [B, k, W] the draft-cache columns that a beam node sees, its own included. Beam node i of level
            d owns column (d - 1) k + i.
        calls: [B] draft calls made, which is also the depth of the newest level.
    """

    def __init__(self, batch_size: int, config: TreeConfig, device: torch.device) -> None:
        k, slots = config.tree_top_k, config.num_candidates
        words = max(1, math.ceil(config.num_draft_columns / 64))
        self.config = config
        self.scores = torch.full((batch_size, slots), -torch.inf, device=device)
        self.tokens = torch.zeros((batch_size, slots), dtype=torch.int64, device=device)
        self.parents = torch.full((batch_size, slots), -1, dtype=torch.int64, device=device)
        self.beam_scores = torch.zeros((batch_size, k), device=device)
        self.beam_tokens = torch.zeros((batch_size, k), dtype=torch.int64, device=device)
        self.beam_slots = torch.zeros((batch_size, k), dtype=torch.int64, device=device)
        self.beam_ancestors = torch.zeros((batch_size, k, words), dtype=torch.int64, device=device)
        self.calls = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._slots = torch.arange(slots, device=device)
        # slots 0 to k-1 are level 1, each later level has k * k of them
        self._depth_of_slot = torch.where(self._slots < k, 1, 2 + (self._slots - k).div(k * k, rounding_mode="floor"))

    def snapshot(self) -> DraftTree:
        """A copy on the CPU that later rounds do not change."""
        twin = object.__new__(DraftTree)
        for name, value in vars(self).items():
            setattr(twin, name, value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value)
        return twin

    def start(self, level: TopkConfidence, hidden: Tensor, beam_hidden: Tensor) -> None:
        """Begin a round with the children of the root (R = 1 row of candidates).

        Args:
            level: the candidates.
            hidden: [B, R, H] the head's states behind `level`.
            beam_hidden: [B, k, H] takes for each node of the new beam the state of its parent.
        """
        grow_tree(level, hidden, self._buffers(beam_hidden), first=True)

    def grow(self, level: TopkConfidence, hidden: Tensor, beam_hidden: Tensor) -> None:
        """Add the children of the beam (R = k rows); arguments as in `start`."""
        grow_tree(level, hidden, self._buffers(beam_hidden), first=False)

    def _buffers(self, beam_hidden: Tensor) -> TreeBuffers:
        return TreeBuffers(
            self.scores, self.tokens, self.parents, self.beam_scores, self.beam_tokens, self.beam_slots,
            self.beam_ancestors, self.calls, beam_hidden,
        )  # fmt: skip

    def select(self, root_token: Tensor) -> VerifyTree:
        """The root [B] and the best `total_tokens - 1` candidates, as a tree.

        A child scores no more than its parent, and of equals the lower slot wins, so the choice is closed under
        parents. When fewer candidates exist, invalid nodes that hang off the root fill the rest.
        """
        batch, slots = self.scores.shape
        picked = min(self.config.total_tokens - 1, slots)
        order = self.scores.sort(dim=1, descending=True, stable=True).indices[:, :picked].sort(dim=1).values
        valid = self.scores.gather(1, order) > -torch.inf
        node_of_slot = torch.zeros((batch, slots + 1), dtype=torch.int64, device=order.device)
        node_of_slot.scatter_(1, order, (self._slots[:picked] + 1).expand(batch, -1))
        parent_slot = self.parents.gather(1, order)
        # the root has no slot: slot index `slots` stands for it and maps to node 0
        parent = node_of_slot.gather(1, torch.where(valid & (parent_slot >= 0), parent_slot, slots))
        parents = torch.cat((torch.zeros_like(parent[:, :1]), parent), dim=1)
        drafted = torch.where(valid, self.tokens.gather(1, order), 0)
        depth = torch.where(valid, self._depth_of_slot[order], 1)
        return VerifyTree(
            draft_tokens=torch.cat((root_token[:, None], drafted), dim=1),
            parents=parents,
            depths=torch.cat((torch.zeros_like(depth[:, :1]), depth), dim=1),
            valid=torch.cat((torch.ones_like(valid[:, :1]), valid), dim=1),
            ancestors=pack_bits(self._reach(parents)),
        )

    def _reach(self, parents: Tensor) -> Tensor:
        """Transitive closure of `parents` [B, N] -> [B, N, N] bool by repeated squaring: log2(depth) small products."""
        nodes = parents.shape[1]
        columns = torch.arange(nodes, device=parents.device)
        reach = ((parents[..., None] == columns) | (columns[:, None] == columns)).float()
        for _ in range(max(1, math.ceil(math.log2(self.config.max_calls + 1)))):
            reach = (reach @ reach > 0).float()
        return reach > 0
