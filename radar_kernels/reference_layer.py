"""A decoder layer's glue in plain PyTorch, rounded where stock modules round: the definition of correct."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar_kernels.reference import store_rows

__all__ = [
    "Beam",
    "DraftRows",
    "HeadNorms",
    "add_rms_norm",
    "draft_rows",
    "rms_norm",
    "rotary_angles",
    "rotate_store",
    "silu_mul",
]


class HeadNorms(NamedTuple):
    """RMS norms of every head of queries and of keys, before they are rotated (Qwen3)."""

    query: Tensor  # [D] weight
    key: Tensor  # [D] weight
    eps: float


class Beam(NamedTuple):
    """Rows that extend a draft tree."""

    parents: Tensor  # [B, K] int64, rows of the states that its K nodes follow, of which the first N are expanded
    calls: Tensor  # [B] int64, levels of the tree


class DraftRows(NamedTuple):
    """What a draft layer reads."""

    normed: Tensor  # [B, N, 2 H], norm of the embedding, then of the state
    states: Tensor  # [B, N, H], as they came
    positions: Tensor  # [B, N] int64, in the text
    start: Tensor  # [B] int64, row of the draft's cache that takes the first


def rms_norm(x: Tensor, weight: Tensor, eps: float, form: str = "rounded") -> Tensor:
    """See `radar_kernels.rms_norm`."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if form != "rounded":
        return (wide * (weight.float() + (1.0 if form == "shifted" else 0.0))).to(x.dtype)
    return weight * wide.to(x.dtype)


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, eps: float, *, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `radar_kernels.add_rms_norm`."""
    if count is not None:
        last = (count - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        residual, x = residual.gather(1, last), x.gather(1, last)
    total = residual + x
    return total, rms_norm(total, weight, eps)


def draft_rows(
    tokens: Tensor,
    table: Tensor,
    hidden: Tensor,
    length: Tensor,
    weights: tuple[Tensor, Tensor],
    eps: float,
    *,
    beam: Beam | None = None,
) -> DraftRows:
    """See `radar_kernels.draft_rows`."""
    nodes = tokens.shape[1]
    if beam is None:
        states, start = hidden, length
        positions = length[:, None] + torch.arange(nodes, device=length.device)
    else:
        depth = beam.calls - 1
        states = hidden.gather(1, beam.parents[:, :nodes, None].expand(-1, -1, hidden.shape[2]))
        positions, start = (length + depth)[:, None].expand_as(tokens), length + depth * beam.parents.shape[1]
    embeds = table[tokens.clamp(min=0)]
    normed = torch.cat((rms_norm(embeds, weights[0], eps), rms_norm(states, weights[1], eps)), dim=-1)
    return DraftRows(normed, states, positions, start)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `radar_kernels.silu_mul`."""
    return F.silu(gate) * up


def rotary_angles(positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `radar_kernels.rotary_angles`."""
    angle = positions[..., None].float() * frequencies
    angle = torch.cat((angle, angle), dim=-1)
    return (angle.cos() * scaling).to(dtype), (angle.sin() * scaling).to(dtype)


def rotate_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    start: Tensor,
    *,
    positions: Tensor | None = None,
    norms: HeadNorms | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """See `radar_kernels.rotate_store`."""
    dim = key_cache.shape[3]
    q, k, v = (x.unflatten(-1, (-1, dim)) for x in (query, key, value))
    if norms is not None:
        q, k = rms_norm(q, norms.query, norms.eps), rms_norm(k, norms.key, norms.eps)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[:, None], sin[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    store_rows(key_cache, value_cache, _rotate(k, cos, sin), v, start, block_table)
    return _rotate(q, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
