"""The ops on draft trees in plain PyTorch: the definition of correct, and what runs on a CPU.

Nothing here asks the host about a device value: these can be captured too.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from radar_kernels.reference import TopkConfidence, topk_confidence
from radar_kernels.reference_sampling import mark_seen

__all__ = [
    "Acceptance", "Share", "TreeBuffers", "VerifyTree", "accept_nodes", "add_level", "grow_tree", "pack_bits",
    "select_nodes", "share_nodes",
]  # fmt: skip


class TreeBuffers(NamedTuple):
    """A draft tree on static buffers: C candidate slots, a beam of k nodes, W words of draft columns."""

    scores: Tensor  # [B, C] float32, cumulative log-probability; -inf where no level has written
    tokens: Tensor  # [B, C] int64, ids of the target's vocabulary
    parents: Tensor  # [B, C] int64, slots; -1 is the root
    beam_scores: Tensor  # [B, k] float32, of the newest level, descending
    beam_tokens: Tensor  # [B, k] int64
    beam_slots: Tensor  # [B, k] int64
    beam_parents: Tensor  # [B, k] int64, rows of the logits that the beam nodes come from
    beam_ancestors: Tensor  # [B, k, W] int64, draft columns that a beam node sees
    calls: Tensor  # [B] int64, levels so far


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


class Share(NamedTuple):
    """Trees of B rows as one row of nodes, each tree's behind those of the one before.

    Attributes:
        counts: [B] int32, nodes of each tree that are in it, the root included.
        starts: [B + 1] int32, where each tree begins; the last is how many nodes there are.
        nodes: [T] int64, row * M + node of each place, M the most that a tree can have; -1 behind the last.
    """

    counts: Tensor
    starts: Tensor
    nodes: Tensor


class Acceptance(NamedTuple):
    """What a verification leaves for the next round and for the host.

    Attributes:
        path: [B, A] accepted nodes in order, the root first; 0 past `accept_length`.
        tokens: [B, A] the target's token after each of them: the round's result is the first accept_length + 1, and
            past them stands the token after the root. NO_TOKEN (-1) at `accept_length`, if the target's scores there
            were not numbers.
        accept_length: [B] draft tokens accepted; the target's own token is not counted.
        num_tokens: [B] the round's tokens, accept_length + 1.
        next_token: [B] the last of them: the next root.
        result: [B, 3 + A] draft calls, draft tokens that were verified, accept_length, tokens.
    """

    path: Tensor
    tokens: Tensor
    accept_length: Tensor
    num_tokens: Tensor
    next_token: Tensor
    result: Tensor


def pack_bits(flags: Tensor) -> Tensor:
    """Boolean columns [..., C] -> int64 words [..., ceil(C / 64)]; column 64 w + c is bit c of word w."""
    columns = flags.shape[-1]
    words = math.ceil(columns / 64)
    padded = torch.nn.functional.pad(flags.to(torch.int64), (0, words * 64 - columns))
    shifts = torch.arange(64, device=flags.device)
    return (padded.view(*flags.shape[:-1], words, 64) << shifts).sum(
        -1
    )  # bit 63 is the sign: the sum wraps as it should


def grow_tree(
    logits: Tensor, tree: TreeBuffers, *, first: bool, alive: Tensor | None = None, d2t: Tensor | None = None
) -> None:
    """Add one draft level; see `radar_kernels.grow_tree`."""
    parents = tree.beam_scores.new_zeros(len(tree.calls), 1) if first else tree.beam_scores[:, : logits.shape[1]]
    level = topk_confidence(logits, parents, tree.beam_scores.shape[1], d2t=d2t)
    before = None if alive is None else TreeBuffers(*(part.clone() for part in tree))
    add_level(level, tree, first=first)
    if alive is not None and before is not None:
        for part, old in zip(tree, before, strict=True):
            part.copy_(torch.where(alive.view(-1, *[1] * (part.dim() - 1)), part, old))


def add_level(level: TopkConfidence, tree: TreeBuffers, *, first: bool) -> None:
    """Write a level's candidates and its beam."""
    (_, k, words), rows = tree.beam_ancestors.shape, level.candidate_scores.shape[1]
    node = torch.arange(k, device=tree.calls.device)
    if first:
        tree.scores.fill_(-torch.inf)
        tree.scores[:, :k] = level.candidate_scores[:, 0]
        tree.tokens[:, :k] = level.candidate_tokens[:, 0]
        tree.parents[:, :k] = -1
        tree.beam_slots.copy_(level.indices)
        tree.beam_parents.zero_()
        tree.beam_ancestors.zero_()
        tree.calls.zero_()
    else:
        offset = (k + (tree.calls - 1) * k * k)[:, None]
        slots = offset + torch.arange(rows * k, device=tree.calls.device)
        tree.scores.scatter_(1, slots, level.candidate_scores.flatten(1))
        tree.tokens.scatter_(1, slots, level.candidate_tokens.flatten(1))
        tree.parents.scatter_(1, slots, tree.beam_slots[:, :rows].repeat_interleave(k, dim=1))
        row = level.indices.div(k, rounding_mode="floor")
        tree.beam_slots.copy_(offset + level.indices)
        tree.beam_parents.copy_(row)
        tree.beam_ancestors.copy_(tree.beam_ancestors.gather(1, row[..., None].expand_as(tree.beam_ancestors)))
    tree.beam_scores.copy_(level.scores)
    tree.beam_tokens.copy_(level.candidate_tokens.flatten(1).gather(1, level.indices))
    column = tree.calls[:, None] * k + node
    bit = (torch.ones_like(column) << column.remainder(64))[..., None]
    word = column.div(64, rounding_mode="floor")[..., None]
    tree.beam_ancestors.bitwise_or_(torch.where(torch.arange(words, device=tree.calls.device) == word, bit, 0))
    tree.calls.add_(1)


def share_nodes(scores: Tensor, active: Tensor, *, total: int, most: int) -> Share:
    """Which nodes are verified together; see `radar_kernels.share_nodes`."""
    batch, slots = scores.shape
    flat = scores.masked_fill(~active[:, None], -torch.inf).flatten()
    best = flat.sort(descending=True, stable=True)
    room = min(total - batch, batch * slots)
    picked = torch.zeros_like(flat, dtype=torch.int32)
    picked[best.indices[:room]] = (best.values[:room] > -torch.inf).int()
    counts = (1 + picked.view(batch, slots).sum(1, dtype=torch.int32)).clamp(max=most)
    ends = counts.cumsum(0, dtype=torch.int32)
    place = torch.arange(total, device=scores.device)
    row = (ends <= place[:, None]).sum(1)
    starts = torch.nn.functional.pad(ends, (1, 0))
    nodes = torch.where(place < ends[-1], row * most + place - starts[row], -1)
    return Share(counts, starts, nodes)


def select_nodes(
    scores: Tensor,
    tokens: Tensor,
    parents: Tensor,
    root_token: Tensor,
    *,
    total_tokens: int,
    tree_top_k: int,
    counts: Tensor | None = None,
) -> VerifyTree:
    """The root and the best candidates as a tree; see `radar_kernels.select_nodes`."""
    (batch, slots), k = scores.shape, tree_top_k
    picked = min(total_tokens - 1, slots)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :picked]
    if counts is None:
        order = order.sort(dim=1).values
        valid = scores.gather(1, order) > -torch.inf
    else:  # what is not wanted goes behind the rest
        wanted = torch.arange(1, picked + 1, device=scores.device) < counts[:, None]
        order = torch.where(wanted, order, slots).sort(dim=1).values
        wanted = order < slots
        order = torch.where(wanted, order, 0)
        valid = wanted & (scores.gather(1, order) > -torch.inf)
    node = torch.arange(picked + 1, device=scores.device)
    node_of_slot = torch.zeros((batch, slots + 1), dtype=torch.int64, device=scores.device)
    spare = order if counts is None else torch.where(wanted, order, slots)
    node_of_slot.scatter_(1, spare, node[1:].expand(batch, -1))
    node_of_slot[:, slots] = 0
    parent_slot = parents.gather(1, order)
    # the root has no slot: slot index `slots` stands for it and maps to node 0
    parent = node_of_slot.gather(1, torch.where(valid & (parent_slot >= 0), parent_slot, slots))
    parent = torch.nn.functional.pad(parent, (1, 0))
    # slots 0 to k - 1 are level 1, each later level has k * k of them
    level = torch.where(order < k, 1, 2 + (order - k).div(k * k, rounding_mode="floor"))
    depth = torch.where(valid, level, 1)
    # transitive closure of `parent` by repeated squaring: log2(depth) small products
    reach = ((parent[..., None] == node) | (node[:, None] == node)).float()
    for _ in range(math.ceil(math.log2(2 + (slots - k) / k**2))):
        reach = (reach @ reach > 0).float()
    return VerifyTree(
        draft_tokens=torch.cat((root_token[:, None], torch.where(valid, tokens.gather(1, order), 0)), dim=1),
        parents=parent,
        depths=torch.nn.functional.pad(depth, (1, 0)),
        valid=torch.nn.functional.pad(valid, (1, 0), value=True),
        ancestors=pack_bits(reach > 0),
    )


def tree_mass(scores: Tensor, nodes: Tensor) -> Tensor:
    """Summed probability of the best nodes; see `radar_kernels.tree_mass`."""
    shares = torch.nn.functional.pad(scores.exp().sort(dim=1, descending=True).values.cumsum(1), (1, 0))
    return shares[:, (nodes.long() - 1).clamp(max=scores.shape[1])]


def accept_nodes(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, calls: Tensor, into: Acceptance,
    seen: Tensor,
) -> None:  # fmt: skip
    """Walk down the branch that the target agrees with; see `radar_kernels.accept_nodes`."""
    nodes, longest = target_tokens.shape[1], into.path.shape[1]
    node = torch.arange(nodes, device=parents.device)
    accepted = (valid & (draft_tokens == target_tokens.gather(1, parents))) | (node == 0)
    above = parents
    for _ in range(math.ceil(math.log2(longest))):  # after i turns: the node and the 2**i - 1 nodes above it
        accepted = accepted & accepted.gather(1, above)
        above = above.gather(1, above)
    # nodes are sorted by depth, so the n-th accepted node is the n-th of the branch; the rest goes to a spare column
    rank = torch.where(accepted, accepted.cumsum(dim=1) - 1, longest)
    path = torch.zeros((len(rank), longest + 1), dtype=torch.int64, device=rank.device)
    into.path.copy_(path.scatter(1, rank, torch.where(accepted, node, 0))[:, :longest])
    into.num_tokens.copy_(accepted.sum(dim=1))
    into.accept_length.copy_(into.num_tokens - 1)
    into.tokens.copy_(target_tokens.gather(1, into.path))
    into.next_token.copy_(into.tokens.gather(1, into.accept_length[:, None])[:, 0])
    drafted = valid[:, 1:].sum(dim=1)
    into.result.copy_(torch.cat((torch.stack((calls, drafted, into.accept_length), 1), into.tokens), dim=1))
    mark_seen(seen, into.tokens, into.num_tokens)
