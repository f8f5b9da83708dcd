"""A decoder layer's glue in plain PyTorch, rounded where stock modules round: the definition of correct."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar_kernels.reference import store_rows

__all__ = ["HeadNorms", "add_rms_norm", "rms_norm", "rotate_store", "silu_mul"]


class HeadNorms(NamedTuple):
    """RMS norms of every head of queries and of keys, before they are rotated (Qwen3)."""

    query: Tensor  # [D] weight
    key: Tensor  # [D] weight
    eps: float


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `radar_kernels.rms_norm`."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `radar_kernels.add_rms_norm`."""
    total = residual + x
    return total, rms_norm(total, weight, eps)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `radar_kernels.silu_mul`."""
    return F.silu(gate) * up


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
    store_rows(key_cache, value_cache, _rotate(k, cos, sin), v, start)
    return _rotate(q, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
