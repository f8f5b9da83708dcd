"""The text whose keys and values the caches hold, as far as the host knows: the next prompt may begin with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from radar.target.cache import StaticKVCache

__all__ = ["PrefixCache"]


@dataclass
class PrefixCache:
    """Kept by an engine. The target's cache has a row for every token but the last, which the next round reads.

    Rows below what is said here never change while a round runs, so a round that was interrupted, or launched and not
    read, leaves this true.

    Attributes:
        ids: prompt and output.
        pending: tokens at the end of which the draft's cache lacks the pairs, the last one included.
    """

    ids: list[int] = field(default_factory=list)
    pending: int = 0

    def begin(self, prompt: Sequence[int], cache: StaticKVCache, *, reuse: bool) -> int:
        """How many rows of both caches a prompt can go on from; from now on only those are held.

        The last token of the prompt is always run, for its logits. The pair of a row looks one token ahead, so the row
        of the last common token is run again.

        Args:
            prompt: token ids.
            cache: the target's; if somebody has reset it, nothing is held.
            reuse: False: start from nothing.
        """
        rows = 0
        if reuse and self.ids and int(cache.length.min()) >= len(self.ids) - 1:
            pairs = enumerate(zip(prompt, self.ids, strict=False))
            common = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(self.ids)))
            rows = max(0, min(common - 1, len(self.ids) - 1 - self.pending))
        self.ids, self.pending = list(prompt[: rows + 1]), 0
        return rows

    def forget(self) -> None:
        """The caches hold something else now."""
        self.ids, self.pending = [], 0

    def add(self, tokens: Sequence[int], *, pending: int) -> None:
        """Note a round's tokens."""
        self.ids.extend(tokens)
        self.pending = pending
