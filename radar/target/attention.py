"""Attention of new rows over a static cache.

The cache is no argument: whoever runs a forward names it (`radar.target.running`), and the model between knows none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radar.target.running import current_cache
from radar_kernels import tree_attention
from radar_kernels.reference_tree import pack_bits

__all__ = ["attend", "attend_stored", "causal_ancestors"]


def attend(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, ancestors: Tensor, layer: int, scale: float
) -> Tensor:
    """Store the rows' keys and values, and let each row see the committed text and its own ancestors.

    Args:
        query: [B, H, N, D].
        key, value: [B, KV, N, D] of the same rows.
        start: [B] int64, the cache's row that takes the first of them: its length, or a scratch row beyond.
        ancestors: [B, N, W] words; bit c of word w shows the cache's row `length + 64 w + c`.
        layer: of the cache.
        scale: factor on the scores.

    Returns:
        [B, N, H, D].
    """
    current_cache().write(layer, key, value, start)
    return attend_stored(query, ancestors, layer, scale)


def attend_stored(query: Tensor, ancestors: Tensor, layer: int, scale: float) -> Tensor:
    """`attend` of rows whose keys and values are in the cache."""
    cache = current_cache()
    keys, values = cache.rows(layer)
    return tree_attention(query, keys, values, cache.length, ancestors, scale=scale)


def causal_ancestors(rows: int, device: torch.device) -> Tensor:
    """Ancestor words [1, rows, W] of a chain: row i sees columns 0 to i."""
    return pack_bits(torch.ones(rows, rows, dtype=torch.bool, device=device).tril())[None]
