"""What prompts begin with, computed once: the target's pages, and what the draft head has for the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radar.target.cache import StaticKVCache
from radar.target.pages import PagedKVCache
from radar_kernels.reference_canonical import PAGE

__all__ = ["SharedPrompts"]


class SharedPrompts:
    """Lends prompts' pages to later ones that begin alike.

    The draft head's cache is in one piece, so what it has for a page is copied, out of one row and into another.

    Args:
        pages: the target's.
        drafter: the draft head's cache, of as many rows; None: there is no head.
    """

    def __init__(self, pages: PagedKVCache, drafter: StaticKVCache | None) -> None:
        self._pages, self._drafter = pages, drafter
        self._pairs: dict[int, Tensor] = {}  # keys and values [2, L, KV, PAGE, D] by page

    def take(self, row: int, prompt: Sequence[int]) -> int:
        """Let a row begin with what is held of its prompt; returns how many tokens, fewer than the prompt has."""
        tokens = self._pages.share(row, prompt)
        if self._drafter is not None and tokens:
            pairs = torch.cat([self._pairs[page] for page in self._pages.pool.held[row]], dim=-2)
            for cache, part in zip((self._drafter.keys, self._drafter.values), pairs, strict=True):
                cache[:, row, :, :tokens] = part
        return tokens

    def keep(self, row: int, prompt: Sequence[int]) -> None:
        """Lend a row's prompt, all of whose tokens went through the prompt's pass or were lent themselves."""
        added, pool = self._pages.remember(row, prompt), self._pages.pool
        self._pairs = {page: pairs for page, pairs in self._pairs.items() if pool.knows(page)}
        for place, page in added.items():
            if self._drafter is not None:
                rows = slice(place * PAGE, (place + 1) * PAGE)
                parts = [cache[:, row, :, rows] for cache in (self._drafter.keys, self._drafter.values)]
                self._pairs[page] = torch.stack(parts)

    def forget(self) -> None:
        """Lend nothing of what is held now: the weights are others."""
        self._pages.pool.forget()
        self._pairs.clear()
