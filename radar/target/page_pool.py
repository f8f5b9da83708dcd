"""Who holds which pages of a cache, as the host knows it."""

from __future__ import annotations

from collections.abc import Sequence

from radar.target.prefix_pages import PrefixPages
from radar_kernels.reference_canonical import PAGE

__all__ = ["PagePool", "pages_of"]


def pages_of(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE)


class PagePool:
    """Gives pages to the rows of a batch and takes them back. Page 0 is nobody's: it takes what belongs nowhere.

    A page may belong to several rows, whose texts begin alike. One that no row holds keeps a known prefix until
    the page is needed; the one that was let go first is taken first, and of a text the last.

    Args:
        pages: 1 to `pages` can be held.
        rows: of the batch.

    Attributes:
        held: each row's pages, in the order of its text.
        changed: rows that hold others than when somebody emptied this.
    """

    def __init__(self, pages: int, rows: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(rows)]
        self.changed: set[int] = set()
        self._free = list(range(pages, 0, -1))
        self._idle: dict[int, None] = {}  # of nobody, with a known prefix, in the order they were let go
        self._users = [0] * (pages + 1)
        self._prefixes = PrefixPages()

    @property
    def available(self) -> int:
        """Pages that can be given out."""
        return len(self._free) + len(self._idle)

    def reserve(self, row: int, pages: int, *, spare: int = 0) -> bool:
        """Let a row hold so many in all, or what it holds if that is more; False, and nothing changes, if fewer than
        `spare` would be left."""
        missing = pages - len(self.held[row])
        if missing > self.available - spare:
            return False
        for _ in range(missing):
            page = self._take()
            self._users[page] = 1
            self.held[row].append(page)
            self.changed.add(row)
        return True

    def free(self, row: int) -> None:
        """Take a row's pages."""
        for page in reversed(self.held[row]):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._prefixes:
                    self._idle[page] = None
                else:
                    self._free.append(page)
        self.held[row] = []
        self.changed.add(row)

    def move(self, source: int, target: int) -> None:
        """Give a row's pages to another one, which holds nothing."""
        self.free(target)
        self.held[source], self.held[target] = [], self.held[source]
        self.changed |= {source, target}

    def share(self, row: int, ids: Sequence[int]) -> int:
        """Let a row that holds nothing begin with the pages known for its prompt `ids`: how many."""
        self.free(row)
        found = self._prefixes.find(ids)
        for page in found:
            self._users[page] += 1
            self._idle.pop(page, None)
        self.held[row] = found
        return len(found)

    def remember(self, row: int, ids: Sequence[int]) -> dict[int, int]:
        """A row's pages hold the prompt `ids`; tells which are known from now on, by their places."""
        return self._prefixes.add(ids, self.held[row])

    def knows(self, page: int) -> bool:
        """Whether a text could begin with what the page holds."""
        return page in self._prefixes

    def forget(self) -> None:
        """No page holds a prefix that a new text could begin with: the weights are others, say."""
        self._free.extend(self._idle)
        self._idle, self._prefixes = {}, PrefixPages()

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page = next(iter(self._idle))
        del self._idle[page]
        self._prefixes.drop(page)
        return page
