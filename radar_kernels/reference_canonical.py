"""`canonical_attention` in plain PyTorch: the definition of correct."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PAGE", "Alike", "Paths", "ancestor_paths", "canonical_attention", "unpaged"]

PAGE = 64  # tokens of a page


class Paths(NamedTuple):
    """The way to each node of a tree, in order, itself last; a layer does not change it.

    Attributes:
        columns: [B, N, P] int32, of the tree's rows in the cache; what stands behind a path's length does not matter.
        lengths: [B, N] int32.
    """

    columns: Tensor
    lengths: Tensor


class Alike(NamedTuple):
    """Entries of a batch that have one text: the same prefix, and the same pages or place of it.

    Attributes:
        starts: [T + 1] int32: entries starts[t] to starts[t + 1] - 1 have text t.
        most: entries that one text has, at most.
    """

    starts: Tensor
    most: int


def ancestor_paths(ancestors: Tensor, longest: int) -> Paths:
    """Ancestor words [B, N, W] int64, in which a parent comes before its children, as paths of at most `longest`."""
    bits = (ancestors[..., None] >> torch.arange(64, device=ancestors.device) & 1).flatten(2)  # [B, N, 64 W]
    place = torch.where(bits > 0, bits.cumsum(2) - 1, longest).clamp(max=longest)
    numbers = torch.arange(bits.shape[2], device=bits.device).expand_as(bits)
    columns = torch.zeros(*bits.shape[:2], longest + 1, dtype=torch.int64, device=bits.device)
    columns.scatter_(2, place, numbers)
    return Paths(columns[..., :longest].int(), bits.sum(2, dtype=torch.int32))


def unpaged(pages: Tensor, block_table: Tensor) -> Tensor:
    """Pages [P, KV, PAGE, D] and their numbers [B, T] as one cache [B, KV, T * PAGE, D], copied once."""
    batch, count = block_table.shape
    found = pages.transpose(0, 1).index_select(1, block_table.flatten())  # [KV, B * T, PAGE, D]
    return found.view(len(found), batch, count * PAGE, -1).transpose(0, 1)


def canonical_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_length: Tensor,
    paths: Paths,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """See `radar_kernels.canonical_attention`."""
    if block_table is not None:
        key, value = unpaged(key, block_table), unpaged(value, block_table)
    (_, heads, _, dim), capacity = query.shape, key.shape[2]
    # where each key stands in a node's path [B, N, S]; -1: nowhere
    place = torch.arange(capacity, device=query.device).expand(*paths.lengths.shape, capacity)
    place = place.masked_fill(place >= prefix_length[:, None, None], -1)
    own = torch.arange(paths.columns.shape[2], device=query.device)
    rows = prefix_length[:, None, None] + paths.columns
    rows = rows.masked_fill(own >= paths.lengths[..., None], capacity).clamp(max=capacity)
    positions = (prefix_length[:, None, None] + own).expand_as(rows)
    place = torch.nn.functional.pad(place, (0, 1)).scatter(2, rows, positions)[..., :-1]
    visible = place >= 0
    if window is not None:
        visible &= place >= (prefix_length[:, None] + paths.lengths)[..., None] - window
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    unseen = ~visible.any(1)[:, None, :, None]  # 0 * NaN = NaN: such rows may hold anything
    key, value = (x.to(compute).masked_fill(unseen, 0).repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scores = query.to(compute) @ key.transpose(2, 3) * (dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    rest = torch.full_like(scores[..., :1], -torch.inf)
    if sink is not None:
        rest = sink.to(compute)[None, :, None, None].expand_as(rest)
    weights = torch.cat((scores, rest), -1).softmax(-1)[..., :-1]
    blind = ~visible.any(2)[:, None, :, None]
    return (weights @ value).masked_fill(blind, 0).transpose(1, 2).to(query.dtype).contiguous()
