"""Attention of new rows over a static cache.

The cache is no argument: whoever runs a forward names it (`radar.target.running`), and the model between knows none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from radar.target.needs import PLAIN, Needs
from radar.target.prompt_attention import Chain, attend_chain
from radar.target.running import current_cache
from radar_kernels import canonical_attention, tree_attention
from radar_kernels.ancestor_paths import Paths
from radar_kernels.reference_canonical import Alike
from radar_kernels.reference_tree import pack_bits

__all__ = ["Seen", "SharedPaths", "attend", "attend_stored", "causal_ancestors"]


class SharedPaths(NamedTuple):
    """Paths of a batch of one node an entry, and which of them have one text."""

    paths: Paths
    alike: Alike


Seen = Tensor | Paths | SharedPaths | Chain


def attend(
    query: Tensor, key: Tensor, value: Tensor, start: Tensor, seen: Seen, layer: int, scale: float, needs: Needs = PLAIN
) -> Tensor:
    """Store the rows' keys and values, and let each row see the committed text and its own ancestors.

    With paths a row's result depends on its path alone, bit for bit (`canonical_attention`): what the target says has
    to be the same in every tree. With words it is a little faster, for rows that only propose or always run together.
    A chain is for many rows.

    Args:
        query: [B, H, N, D].
        key, value: [B, KV, N, D] of the same rows.
        start: [B] int64, the cache's row that takes the first of them: its length, or a scratch row beyond.
        seen: ancestor words [B, N, W], bit c of word w shows the cache's row `length + 64 w + c`; paths; or a chain.
        layer: of the cache.
        scale: factor on the scores.
        needs: of the layer; rows that need anything have paths, or are a chain.

    Returns:
        [B, N, H, D].
    """
    current_cache().write(layer, key, value, start)
    return attend_stored(query, seen, layer, scale, needs, kv_heads=key.shape[1])


def attend_stored(
    query: Tensor, seen: Seen, layer: int, scale: float, needs: Needs = PLAIN, *, kv_heads: int | None = None
) -> Tensor:
    """`attend` of rows whose keys and values are in the cache; the layer has so many heads of them, None: the most."""
    cache = current_cache()
    needs = needs.within(cache.capacity)
    if isinstance(seen, Paths | SharedPaths):
        paths, alike = (seen, None) if isinstance(seen, Paths) else seen
        keys, values, table = cache.stored(layer, kv_heads, query.shape[3])
        return canonical_attention(
            query, keys, values, cache.length, paths, scale=scale, block_table=table, alike=alike, **needs._asdict()
        )
    keys, values = cache.rows(layer, kv_heads, query.shape[3])
    if isinstance(seen, Chain):
        return attend_chain(query, keys, values, seen, scale, needs)
    if needs.any:  # `layer_needs` said nothing of it
        raise RuntimeError(f"layer {layer} needs {needs}, for which its rows must have paths")
    return tree_attention(query, keys, values, cache.length, seen, scale=scale)


def causal_ancestors(rows: int, device: torch.device) -> Tensor:
    """Ancestor words [1, rows, W] of a chain: row i sees columns 0 to i."""
    return pack_bits(torch.ones(rows, rows, dtype=torch.bool, device=device).tril())[None]
