"""Keys and values in static buffers: written at device-side positions, compacted to the accepted path."""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from radar_kernels import keep_rows, store_rows

__all__ = ["StaticKVCache", "Stored", "Swapped"]


class Swapped(NamedTuple):
    """What a row held, in the host's memory."""

    length: int
    keys: Tensor
    values: Tensor


Stored = tuple[Tensor, Tensor, Tensor | None]


class StaticKVCache:
    """One buffer for all layers; nothing is allocated after construction.

    Rows below `length` are committed. Rows above it are scratch: a tree's nodes, or the padding of a chunk, which the
    next write covers. A layer with fewer or narrower heads has the first ones of the buffers. Shapes never change and
    lengths live on the device, so every method can be captured in a graph.

    Args:
        num_layers, batch_size, num_kv_heads, capacity, head_dim: shape of the buffers [L, B, KV, S, D].
        dtype, device: of the buffers.

    Attributes:
        keys, values: [L, B, KV, S, D].
        block_table: of a cache in pages (`PagedKVCache`).
        length: committed rows [B], int64.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch_size, num_kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.block_table: Tensor | None = None
        self._window = capacity

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def row(self, index: int) -> Self:
        """The cache of one row of the batch, in the same buffers."""
        return self._part(slice(index, index + 1))

    def first(self, count: int) -> Self:
        """The cache of the first `count` rows of the batch, in the same buffers."""
        return self._part(slice(count))

    def _part(self, rows: slice) -> Self:
        view = copy.copy(self)
        view.keys, view.values, view.length = self.keys[:, rows], self.values[:, rows], self.length[rows]
        return view

    def move(self, source: int, target: int, rows: int) -> None:
        """Let one row of the batch hold what another one holds, `rows` tokens."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :rows] = tensor[:, source, :, :rows]
        self.length[target] = self.length[source]

    def swap_out(self, row: int) -> Swapped:
        """A copy of a row's text in the host's memory; waits for the device."""
        length = int(self.length[row])
        return Swapped(length, *(x[:, row, :, :length].to("cpu", copy=True) for x in (self.keys, self.values)))

    def swap_in(self, row: int, text: Swapped) -> bool:
        """Let a row hold such a text; False, and nothing changes, if there is no room."""
        self.keys[:, row, :, : text.length] = text.keys.to(self.keys.device)
        self.values[:, row, :, : text.length] = text.values.to(self.keys.device)
        self.length[row].fill_(text.length)
        return True

    def write(self, layer: int, keys: Tensor, values: Tensor, start: Tensor) -> None:
        """Put N rows [B, KV, N, D] at `start` [B] of one layer."""
        store_rows(*self.part(layer, keys.shape[1], keys.shape[3]), keys, values, start, block_table=self.block_table)

    def part(self, layer: int, heads: int | None = None, dim: int | None = None) -> tuple[Tensor, Tensor]:
        """One layer's keys and values as they are stored, of so many heads and numbers of a head; None: all."""
        return self.keys[layer][:, :heads, :, :dim], self.values[layer][:, :heads, :, :dim]

    def stored(self, layer: int, heads: int | None = None, dim: int | None = None) -> Stored:
        """The same, and the block table, for kernels that read pages."""
        return *self.rows(layer, heads, dim), None

    def rows(self, layer: int, heads: int | None = None, dim: int | None = None) -> tuple[Tensor, Tensor]:
        """One layer's keys and values [B, KV, S, D], S the window."""
        keys, values = self.part(layer, heads, dim)
        return keys[:, :, : self._window], values[:, :, : self._window]

    def set_window(self, rows: int) -> None:
        """Promise, from the host, that no row from `rows` on is in use until the next promise.

        Attention on a CPU reads whole buffers, so a short text should not pay for a long cache. On a GPU the kernels
        read the length on the device, and the window stays the whole buffer.
        """
        if self.keys.device.type == "cpu":
            self._window = min(self.capacity, -(-rows // 128) * 128)

    def commit(self, path: Tensor, count: Tensor) -> None:
        """Keep the scratch rows `path` [B, A] (offsets from `length`) in that order, and `count` [B] of them for good.

        `path` ascends. What its entries past `count` say does not matter.
        """
        keep_rows(self.keys, self.values, self.length, path, count, block_table=self.block_table)
        self.length += count

    def reset(self) -> None:
        self.length.zero_()
