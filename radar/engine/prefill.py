"""Run a prompt through the target, and through the draft head beside it, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from radar.draft.base import Drafter
from radar.target.entries import Rider
from radar.target.model import TargetModel
from radar.target.pages import PagedKVCache
from radar.target.prompt_attention import LEAST_ROWS, MOST_ROWS

__all__ = ["Prefill", "chunk_sizes"]


SIZES = {"cuda": {64: 1, 128: 65, 1024: 513}, "cpu": {16: 1, 64: 33}}
"""By device, the rows of a small chunk, ascending, and from how many tokens on it is the quickest, since few rows wait
for the weights: as a linear layer goes through its weights once for 128 rows, more at a time take as long as two of
them, until there are so many that they are no longer few."""


def chunk_sizes(device: torch.device) -> dict[int, int]:
    """`SIZES` of a device; a small chunk is padded to one of them."""
    return SIZES["cuda" if device.type == "cuda" else "cpu"]


def split(start: int, stop: int, sizes: Mapping[int, int], large: int | None) -> Iterator[tuple[int, int, int]]:
    """(first, count, rows) of the chunks that cover start to stop: `count` tokens, padded to `rows`.

    What is more than two of the largest of `sizes` goes in chunks of `large` tokens. The last takes up to a quarter
    more, since a pass of some hundred rows waits for the host as long as one of two thousand.
    """
    is_long = stop - start > 2 * max(sizes)
    while start < stop:
        left = stop - start
        if large is not None and is_long:
            count = rows = left if left <= large + large // 4 else large
        else:
            rows = max(size for size, least in sizes.items() if left >= least)
            count = min(rows, left)
        yield start, count, rows
        start += count


class Prefill:
    """Fills the caches with prompts, in the same way whoever decodes them.

    A short prompt goes through `chunk`, which works on static buffers and asks the host for nothing, so a graph can
    hold it. The many rows of a long one are eager. The rows that a prompt goes on from may have
    been computed in other chunks, or as the tokens of an answer: in 16 bits they need not be those of a fresh pass.

    Args:
        target, drafter: made for the largest of `chunk_sizes` at least; without a drafter only the target runs.

    Attributes:
        sizes: rows that `chunk` may be called for, and from how many tokens on.
        large: tokens of a long prompt's chunk; None: there is no fast attention for them, all go in small ones.
        logits: [B, vocabulary] of each prompt's last token.
        taps: its features [B, 1, taps * hidden]: with the next token, the pair that the first `Drafter.begin` adds.
    """

    def __init__(self, target: TargetModel, drafter: Drafter | None = None) -> None:
        batch, device = target.cache.length.shape[0], target.device
        flash = target.has_flash
        self.sizes = {rows: least for rows, least in chunk_sizes(device).items() if rows < LEAST_ROWS or flash}
        self.large = MOST_ROWS if flash else None
        self.target, self.drafter = target, drafter
        self.tokens = torch.zeros((batch, max(self.sizes) + 1), dtype=torch.int64, device=device)
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.known = torch.zeros(batch, dtype=torch.int64, device=device)
        self.logits = torch.zeros((batch, target.vocab_size), dtype=target.dtype, device=device)
        width = len(target.tap_layers) * target.hidden_size
        self.taps = torch.zeros((batch, 1, width), dtype=target.dtype, device=device)

    def run(
        self,
        input_ids: Tensor,
        chunks: Mapping[int, Callable[[], object]] | None = None,
        *,
        start: int = 0,
        lengths: Tensor | None = None,
    ) -> None:
        """Take prompts [B, P] on the target's device, P >= 1.

        Args:
            chunks: what runs `self.chunk` for each of `sizes`; None: Python does.
            start: rows that both caches hold already, 0 <= start < P: the pair of a row looks one token ahead, so both
                are to be of this prompt's tokens up to the one at `start`. What they hold beyond is dropped.
            lengths: [B] of the prompts, where they differ: `input_ids` is padded on the right.
        """
        for _ in self.chunked(input_ids, chunks, start=start, lengths=lengths):
            pass

    def staged(self, input_ids: Tensor, rows: int, *, start: int) -> Iterator[int]:
        """A short prompt [1, P] in chunks of up to `rows` tokens, each of which whoever asked for it has to run before
        the next: by `chunk`, or beside a verification (`rider`, `take`). Tells the tokens of each."""
        length = input_ids.shape[1]
        self._begin(length, start)
        padded = torch.nn.functional.pad(input_ids, (0, max(self.sizes)))
        for first in range(start, length, rows):
            count = min(rows, length - first)
            self.count.fill_(count)
            self.known.fill_(count - 1 if first + count == length else count)
            self.tokens.copy_(padded[:, first : first + self.tokens.shape[1]])
            yield count

    def _begin(self, length: int, start: int) -> None:
        for cache in (self.target.cache, *(() if self.drafter is None else (self.drafter.cache,))):
            cache.set_window(length + max(self.sizes))
            cache.length.fill_(start)

    def chunked(
        self,
        input_ids: Tensor,
        chunks: Mapping[int, Callable[[], object]] | None = None,
        *,
        start: int = 0,
        lengths: Tensor | None = None,
    ) -> Iterator[int]:
        """`run`, chunk by chunk as it is asked for; tells the tokens of each."""
        length = input_ids.shape[1]
        self._begin(length, start)
        padded = torch.nn.functional.pad(input_ids, (0, max(self.sizes)))  # the pairs look one token ahead
        for first, count, rows in split(start, length, self.sizes, self.large):
            tokens = padded[:, first : first + rows + 1]
            # pairs (token t + 1, feature t); the last token's partner is not known yet
            if lengths is None:
                self.count.fill_(count)
                self.known.fill_(count - 1 if first + count == length else count)
            else:
                self.count.copy_((lengths - first).clamp(0, count))
                self.known.copy_((lengths - 1 - first).clamp(0, count))
            if rows not in self.sizes:
                self._take(tokens, *self.target.verify_chain(tokens[:, :-1], keep=self._last()))
            else:
                self.tokens[:, : rows + 1].copy_(tokens)
                if chunks is None:
                    self.chunk(rows)
                else:
                    chunks[rows]()
            yield count

    def chunk(self, rows: int) -> None:
        """Commit the first `count` of `rows` tokens, and `known` pairs."""
        tokens = self.tokens[:, : rows + 1]
        self._take(tokens, *self.target.verify_chain(tokens[:, :-1], keep=self._last()))

    def forget(self) -> None:
        """No prompt is under way."""
        self.count.fill_(1)
        self.known.zero_()

    def rider(self, rows: int) -> Rider:
        """The first `rows` of the tokens that are staged, for `TargetModel.verify_shared`."""
        assert isinstance(self.target.cache, PagedKVCache)  # of one of several rows
        return Rider(*self.target.chain(self.tokens[:, :rows]), self.target.cache)

    def take(self, logits: Tensor, taps: Tensor) -> None:
        """Commit what `chunk` would: of all the rider's tokens logits [R, 1, vocabulary] and taps [R, 1, width]."""
        self._take(self.tokens[:, : len(taps) + 1], logits[self._last()], taps.transpose(0, 1))

    def _last(self) -> Tensor:
        """Of each prompt [B] the last row, which goes through the output layer."""
        return (self.count - 1).clamp(min=0)

    def _take(self, tokens: Tensor, logits: Tensor, taps: Tensor) -> None:
        """Commit what ran: tokens [B, N] and the one behind them, logits [B, B, vocabulary] of the rows of `_last`."""
        self.target.advance(self.count)
        if self.drafter is not None:
            self.drafter.extend(tokens[:, 1:], taps, self.known)
        here = self.count > 0  # a prompt that ended in an earlier chunk keeps what that one left
        own = logits.diagonal(dim1=0, dim2=1).T
        self.logits.copy_(torch.where(here[:, None], own, self.logits))
        last = self._last()[:, None, None].expand(-1, 1, taps.shape[-1])
        self.taps.copy_(torch.where(here[:, None, None], taps.gather(1, last), self.taps))
