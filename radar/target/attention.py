"""Attention of new rows over a static cache, as one step that torch.compile sees as an opaque op.

The cache is no argument of the op: whoever runs a forward names it (`radar.target.running`). So the compiled code knows
no cache and serves every decoder of the same shapes, a later process included, and functionalisation never has to copy
a cache that is written in place. What orders the writes is what orders the layers: each op's output feeds the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radar.target.running import current_cache
from radar_kernels import tree_attention
from radar_kernels.reference_tree import pack_bits

__all__ = ["attend", "causal_ancestors"]


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
    function = _attend_op if torch.compiler.is_compiling() else _attend
    return function(query, key, value, start, ancestors, layer, scale)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, ancestors: Tensor, layer: int, scale: float
) -> Tensor:
    cache = current_cache()
    keys, values = cache.write(layer, key, value, start)
    return tree_attention(query, keys, values, cache.length, ancestors, scale=scale)


_attend_op = torch.library.custom_op("radar::attend", _attend, mutates_args=())


@_attend_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, start: Tensor, ancestors: Tensor, layer: int, scale: float) -> Tensor:
    batch, heads, rows, dim = query.shape
    return query.new_empty(batch, rows, heads, dim)


def causal_ancestors(rows: int, device: torch.device) -> Tensor:
    """Ancestor words [1, rows, W] of a chain: row i sees columns 0 to i."""
    return pack_bits(torch.ones(rows, rows, dtype=torch.bool, device=device).tril())[None]
