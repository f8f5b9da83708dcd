"""Run a prompt through the target, and through the draft head beside it, in chunks of one fixed shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from radar.draft.drafter import Drafter
from radar.target import TargetModel

__all__ = ["Prefill", "prefill_rows"]


def prefill_rows(device: torch.device) -> int:
    """Rows of a chunk; every chunk is padded to them. On a GPU few rows would leave it waiting for its memory."""
    return 256 if device.type == "cuda" else 64


class Prefill:
    """Fills the caches with a prompt.

    `chunk` works on static buffers and asks the host for nothing, so a graph can hold it.

    Args:
        target, drafter: made for `prefill_rows` rows at least; without a drafter only the target runs.

    Attributes:
        logits: [B, vocabulary] of the last chunk's last token.
        taps: its features [B, 1, taps * hidden]: with the next token, the pair that the first `Drafter.begin` adds.
    """

    def __init__(self, target: TargetModel, drafter: Drafter | None = None) -> None:
        batch, device = target.cache.length.shape[0], target.device
        self.rows = prefill_rows(device)
        self.target, self.drafter = target, drafter
        self.tokens = torch.zeros((batch, self.rows + 1), dtype=torch.int64, device=device)
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.known = torch.zeros(batch, dtype=torch.int64, device=device)
        self.logits = torch.zeros((batch, target.vocab_size), dtype=target.dtype, device=device)
        width = len(target.tap_layers) * target.hidden_size
        self.taps = torch.zeros((batch, 1, width), dtype=target.dtype, device=device)

    def run(self, input_ids: Tensor, chunk: Callable[[], None] | None = None, *, start: int = 0) -> None:
        """Take a prompt [B, P] on the target's device, P >= 1.

        Args:
            chunk: runs `self.chunk`; None: Python does.
            start: rows that both caches hold already, 0 <= start < P: the pair of a row looks one token ahead, so both
                are to be of this prompt's tokens up to the one at `start`. What they hold beyond is dropped.
        """
        length = input_ids.shape[1]
        for cache in (self.target.cache, *(() if self.drafter is None else (self.drafter.cache,))):
            cache.set_window(length + self.rows)
            cache.length.fill_(start)
        padded = torch.nn.functional.pad(input_ids, (0, self.rows))  # the pairs look one token ahead
        for first in range(start, length, self.rows):
            count = min(self.rows, length - first)
            self.tokens.copy_(padded[:, first : first + self.rows + 1])
            self.count.fill_(count)
            # pairs (token t + 1, feature t); the last token's partner is not known yet
            self.known.fill_(count - 1 if first + count == length else count)
            (chunk or self.chunk)()

    def chunk(self) -> None:
        """Commit the first `count` of the chunk's tokens, and `known` pairs."""
        out = self.target.forward_chain(self.tokens[:, : self.rows])
        self.target.advance(self.count)
        if self.drafter is not None:
            self.drafter.extend(self.tokens[:, 1:], out.aux_hidden_states, self.known)
        last = (self.count - 1)[:, None, None]
        hidden = out.hidden_states.gather(1, last.expand(-1, 1, out.hidden_states.shape[-1]))
        self.logits.copy_(self.target.logits(hidden)[:, 0])
        self.taps.copy_(out.aux_hidden_states.gather(1, last.expand_as(self.taps)))
