"""Which pages hold the prefix of which texts, so that a system prompt is computed and stored once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from radar_kernels.reference_canonical import PAGE

__all__ = ["PrefixPages"]


class _Key(NamedTuple):
    parent: int  # number of the page in front, 0: none; pages are used again, these numbers are not
    ids: tuple[int, ...]  # the page's tokens and the one behind


class _Known(NamedTuple):
    page: int
    number: int


class PrefixPages:
    """Pages by the tokens in them and in front of them, compared token by token: no two prefixes are taken for one.

    Whoever takes a page has its tokens and the one behind it: a draft head's pair of a row looks one token ahead, and
    the last token of a prompt is run always.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, _Known] = {}
        self._keys: dict[int, _Key] = {}
        self._numbers = count(1)

    def __contains__(self, page: int) -> bool:
        return page in self._keys

    def find(self, ids: Sequence[int]) -> list[int]:
        """The pages that a text of these tokens can begin with."""
        found, parent = [], 0
        for block in _blocks(ids):
            known = self._known.get(_Key(parent, block))
            if known is None:
                break
            found.append(known.page)
            parent = known.number
        return found

    def add(self, ids: Sequence[int], pages: Sequence[int]) -> dict[int, int]:
        """Note what `pages` hold, which are those of a text that begins with `ids`. Of two pages with the same tokens
        the first stays known.

        Returns:
            Those that were not known before, by their places in the text.
        """
        parent, added = 0, {}
        for place, (block, page) in enumerate(zip(_blocks(ids), pages, strict=False)):
            key = _Key(parent, block)
            if key not in self._known:
                self._known[key] = _Known(page, next(self._numbers))
                self._keys[page], added[place] = key, page
            parent = self._known[key].number
        return added

    def drop(self, page: int) -> None:
        """The page holds something else now."""
        del self._known[self._keys.pop(page)]


def _blocks(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(ids) - PAGE, PAGE):
        yield tuple(ids[start : start + PAGE + 1])
