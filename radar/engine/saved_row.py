"""A text that waits outside of the rows, and goes on as if it had not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from radar.engine.sampler import Sampler, SavedSampler
from radar.target.cache import StaticKVCache, Swapped

__all__ = ["RowState", "SavedRow"]


class SavedRow(NamedTuple):
    """What `RowState.save` found."""

    tensors: list[Tensor]
    sampler: SavedSampler
    caches: list[Swapped]


class RowState(NamedTuple):
    """Where a batch keeps what belongs to the texts in its rows.

    Attributes:
        tensors: a row of each is a text's.
        sampler: whose rows are taken.
        caches: of the text's keys and values.
    """

    tensors: Sequence[Tensor]
    sampler: Sampler
    caches: Sequence[StaticKVCache]

    def move(self, source: int, target: int, length: int) -> None:
        """Let one row go on with the text of another one, of `length` tokens."""
        for tensor in self.tensors:
            tensor[target] = tensor[source]
        self.sampler.move(source, target)
        for cache in self.caches:
            cache.move(source, target, length)

    def save(self, row: int) -> SavedRow:
        """Take a row's text out, its keys and values into the host's memory; waits for the device."""
        tensors = [tensor[row].clone() for tensor in self.tensors]
        return SavedRow(tensors, self.sampler.save(row), [cache.swap_out(row) for cache in self.caches])

    def restore(self, row: int, saved: SavedRow) -> None:
        """Let a row go on with it, for whose keys and values there is room."""
        for tensor, value in zip(self.tensors, saved.tensors, strict=True):
            tensor[row] = value
        self.sampler.restore(row, saved.sampler)
        for cache, text in zip(self.caches, saved.caches, strict=True):
            if not cache.swap_in(row, text):
                raise RuntimeError("RowState.restore: the row was given too few pages")
