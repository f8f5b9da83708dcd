"""Stop strings as OpenAI means them: they end the output, of which they are no part. The prompt does not count."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Takes text piece by piece, and hands out what no stop string can begin in.

    Args:
        strings: none of them empty.

    Attributes:
        found: whether one of them came; nothing is handed out behind it.
        rest: what came behind it so far.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings, self._held = tuple(strings), ""
        self.found, self.rest = False, ""

    def push(self, text: str) -> str:
        """Take text; returns what is certain."""
        if self.found or not self._strings:
            return "" if self.found else text
        self._held += text
        places = [(place, -len(one)) for one in self._strings if (place := self._held.find(one)) >= 0]
        if places:
            place, size = min(places)
            self.found, self.rest = True, self._held[place - size :]
            out, self._held = self._held[:place], ""
            return out
        kept = max(_overlap(self._held, one) for one in self._strings)
        place = len(self._held) - kept
        out, self._held = self._held[:place], self._held[place:]
        return out

    def finish(self) -> str:
        """The rest: nothing follows."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that `string` begins with."""
    most = min(len(text), len(string) - 1)
    return next((size for size in range(most, 0, -1) if string.startswith(text[-size:])), 0)
