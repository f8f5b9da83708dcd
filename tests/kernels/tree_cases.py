"""Draft trees to grow, and what their newest level is."""

import torch

from radar_kernels import TreeBuffers, grow_tree
from radar_kernels.reference import TopkConfidence


def make_tree(*, batch=1, k=4, calls=3, device="cpu", **_):
    """A tree that still holds what an earlier round left, all of it wrong for this one."""
    slots, words = k + (calls - 1) * k * k, max(1, -(-(calls - 1) * k // 64))

    def left_over(*shape):
        return torch.randint(0, 2**62, shape, device=device)

    return TreeBuffers(
        scores=torch.full((batch, slots), 7.0, device=device),
        tokens=left_over(batch, slots),
        parents=left_over(batch, slots),
        beam_scores=torch.full((batch, k), torch.nan, device=device),
        beam_tokens=left_over(batch, k),
        beam_slots=left_over(batch, k),
        beam_parents=left_over(batch, k),
        beam_ancestors=left_over(batch, k, words),
        calls=left_over(batch),
    )


def make_logits(tree, *, first, vocabulary=100, dtype=torch.float32, expanded=None, **_):
    batch, k, _ = tree.beam_ancestors.shape
    return (torch.randn(batch, 1 if first else expanded or k, vocabulary, device=tree.scores.device) * 3).to(dtype)


def one_level(logits, parents, k, *, d2t=None, backend="triton"):
    """The newest level of a tree whose beam of k nodes has scores `parents` [B, k], or of one that begins (None)."""
    tree = make_tree(batch=len(logits), k=k, calls=2, device=logits.device)
    if parents is not None:
        tree.beam_scores.copy_(parents)
        tree.beam_slots.copy_(torch.arange(k))
        tree.beam_ancestors.zero_()
        tree.calls.fill_(1)
    grow_tree(logits, tree, first=parents is None, d2t=d2t, backend=backend)
    return level_of(tree)


def level_of(tree, expanded=None):
    """The newest level, whose depth is the same in all rows, of the children of so many nodes of the beam (None: of
    all)."""
    batch, k, _ = tree.beam_ancestors.shape
    depth = int(tree.calls[0])
    first, rows = (0, 1) if depth == 1 else (k + (depth - 2) * k * k, expanded or k)
    slots = slice(first, first + rows * k)
    shape = batch, rows, k
    return TopkConfidence(
        tree.scores[:, slots].view(shape), tree.tokens[:, slots].view(shape), tree.beam_scores, tree.beam_slots - first
    )
