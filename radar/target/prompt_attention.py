"""Attention of a prompt's many rows, a chain behind rows whose number the host knows, by PyTorch's FlashAttention-2.

`radar.target.attention` serves the few rows of a round, from lengths on the device. Here there are thousands, so
their keys are a slice of the cache, and the products are large.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from radar.target.running import current_cache

__all__ = ["MOST_ROWS", "attend_prompt", "chain_attention", "has_flash"]

MOST_ROWS = 4096
"""Of a chunk. More are no faster, and the MLP of an 8B model takes 60 KB a row."""


@functools.cache
def has_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's FlashAttention-2 serves such heads."""
    if device.type != "cuda":
        return False
    row = torch.empty((1, 1, 1, head_dim), dtype=dtype, device=device)
    return head_dim % 8 == 0 and torch.backends.cuda.can_use_flash_attention(
        torch.backends.cuda.SDPAParams(row, row, row, None, 0.0, True, False)
    )


def attend_prompt(query: Tensor, key: Tensor, value: Tensor, first: int, layer: int, scale: float) -> Tensor:
    """Store the rows' keys and values, and let each row see all of the cache up to its own.

    Args:
        query: [B, H, N, D].
        key, value: [B, KV, N, D] of the same rows.
        first: the cache's row that takes the first of them, in the whole batch.
        layer: of the cache.
        scale: factor on the scores.

    Returns:
        [B, N, H, D].
    """
    keys, values = current_cache().put(layer, key, value, first)
    return chain_attention(query, keys, values, scale).transpose(1, 2)


def chain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of N rows [B, H, N, D] to the keys and values [B, KV, S, D] of whose S the last N are their own."""
    if has_flash(query.device, query.dtype, query.shape[-1]):
        # scaled_dot_product_attention would align the mask with the first key; this op does with the last, and takes
        # fewer heads of keys (torch.nn.attention.bias calls it for `causal_lower_right`)
        flash: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)[0]
        return flash
    rows, seen = query.shape[2], key.shape[2]
    mask = torch.ones((rows, seen), dtype=torch.bool, device=query.device).tril(seen - rows)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
