"""Keys and values of several texts in pages: memory follows the tokens held, and texts that begin alike share pages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.target.cache import StaticKVCache, Stored, Swapped
from radar.target.page_pool import PagePool, pages_of
from radar_kernels.reference_canonical import PAGE, unpaged

__all__ = ["PagedKVCache"]


class PagedKVCache(StaticKVCache):
    """A cache whose rows hold pages of 64 tokens, as many as they need.

    To the device it is a static cache: `block_table` stays where it is. Between rounds the host gives pages to rows
    and takes them (`reserve`, `free`, `share`, ...), which the device knows from the next `publish` on. Page 0 is
    nobody's: what is written behind what a row holds, such as a chunk's padding or the scratch of a row without a text,
    goes there, and nobody reads it.

    The host's methods are those of the whole cache, not of views.

    Args:
        num_layers, batch_size, num_kv_heads, capacity, head_dim, dtype, device: as in `StaticKVCache`; a row can hold
            `capacity` tokens, in whole pages.
        cache_tokens: that all rows can hold together, trees included; None: each of them all that it can.

    Attributes:
        keys, values: [L, P, KV, 64, D].
        block_table: [B, T] int32, pages of the rows, 0 behind those.
        pool: who holds which pages.

    Raises:
        UsageError: one row could not hold its `capacity`.
    """

    block_table: Tensor

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        cache_tokens: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        most = pages_of(capacity)
        pages = batch_size * most if cache_tokens is None else pages_of(cache_tokens)
        if pages < most:
            raise UsageError(
                f"cache_tokens must be at least {capacity}, what one text and its tree can take, got {cache_tokens}"
            )
        super().__init__(
            num_layers=num_layers,
            batch_size=1 + pages,
            num_kv_heads=num_kv_heads,
            capacity=PAGE,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )
        self.length = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.block_table = torch.zeros((batch_size, most), dtype=torch.int32, device=device)
        self.pool = PagePool(pages, batch_size)
        self._window = most * PAGE
        self._table = torch.zeros((batch_size, most), dtype=torch.int32)

    @property
    def capacity(self) -> int:
        return self.block_table.shape[1] * PAGE

    def _part(self, rows: slice) -> Self:
        view = copy.copy(self)
        view.block_table, view.length = self.block_table[rows], self.length[rows]
        return view

    def entries(self, rows: Tensor, real: Tensor) -> Self:
        """The cache of a batch of T entries, each of which has the text of one of `rows` [T], or, if it is not `real`
        [T], none, and the page that is nobody's."""
        view = copy.copy(self)
        view.block_table = torch.where(real[:, None], self.block_table[rows], 0)
        view.length = torch.where(real, self.length[rows], 0)
        return view

    def rows(self, layer: int, heads: int | None = None, dim: int | None = None) -> tuple[Tensor, Tensor]:
        """A copy of one layer's keys and values in one piece [B, KV, S, D], S the window."""
        table = self.block_table[:, : pages_of(self._window)]
        keys, values = self.part(layer, heads, dim)
        return unpaged(keys, table), unpaged(values, table)

    def stored(self, layer: int, heads: int | None = None, dim: int | None = None) -> Stored:
        return *self.part(layer, heads, dim), self.block_table

    def reserve(self, row: int, tokens: int, *, spare: int = 0) -> bool:
        """Let a row hold so many tokens in all, its tree included, or its capacity if that is less (a round may run on
        behind a text's end); False, and nothing changes, if there is no room, `spare` pages for others included."""
        return self.pool.reserve(row, pages_of(min(tokens, self.capacity)), spare=spare)

    def reserve_each(self, tokens: Sequence[int]) -> bool:
        """Let the first rows hold so many tokens each, see `reserve`; False, and nothing changes, if there is no room
        for all of them."""
        wanted = [pages_of(min(count, self.capacity)) for count in tokens]
        missing = (count - len(held) for count, held in zip(wanted, self.pool.held, strict=False))
        if sum(max(0, count) for count in missing) > self.pool.available:
            return False
        return all(self.pool.reserve(row, count) for row, count in enumerate(wanted))

    def free(self, row: int) -> None:
        """The row's text has ended."""
        self.pool.free(row)
        self.length[row].zero_()

    def move(self, source: int, target: int, rows: int) -> None:
        """Let another row have a row's text, by its pages: nothing of the `rows` tokens is copied."""
        self.pool.move(source, target)
        self.length[target].copy_(self.length[source])
        self.length[source].zero_()

    def reset(self) -> None:
        """No row has a text."""
        super().reset()
        for row in range(len(self.length)):
            self.pool.free(row)

    def share(self, row: int, prompt_ids: Sequence[int]) -> int:
        """Let a row without a text begin with what is held of its prompt, whole pages of it.

        Returns:
            How many tokens: fewer than the prompt has. The row's length is that.
        """
        tokens = PAGE * self.pool.share(row, prompt_ids)
        self.length[row].fill_(tokens)
        return tokens

    def remember(self, row: int, prompt_ids: Sequence[int]) -> dict[int, int]:
        """Let later texts share a row's prompt, all of whose tokens went through the prompt's pass.

        Returns:
            The pages that can be shared from now on, by their places in the text.
        """
        return self.pool.remember(row, prompt_ids)

    def swap_out(self, row: int) -> Swapped:
        """See `StaticKVCache`; takes the row's pages."""
        length = int(self.length[row])
        held = self._held(row, length)
        text = Swapped(length, self.keys[:, held].cpu(), self.values[:, held].cpu())
        self.free(row)
        return text

    def swap_in(self, row: int, text: Swapped) -> bool:
        if not self.reserve(row, text.length):
            return False
        held = self._held(row, text.length)
        self.keys[:, held] = text.keys.to(held.device)
        self.values[:, held] = text.values.to(held.device)
        self.length[row].fill_(text.length)
        return True

    def _held(self, row: int, tokens: int) -> Tensor:
        return torch.tensor(self.pool.held[row][: pages_of(tokens)], dtype=torch.int64, device=self.keys.device)

    def publish(self) -> None:
        """Tell the device which pages the rows hold, before what runs next: one small copy, if that has changed."""
        if not self.pool.changed:
            return
        for row in self.pool.changed:
            held = torch.tensor(self.pool.held[row], dtype=torch.int32)
            self._table[row].zero_()
            self._table[row, : len(held)] = held
        self.pool.changed.clear()
        # a copy that is under way reads what it was given: pinned memory of its own, which is PyTorch's to take back
        table = self._table.pin_memory() if self.block_table.is_cuda else self._table
        self.block_table.copy_(table, non_blocking=True)
