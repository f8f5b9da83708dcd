"""Plain decoding on static buffers: what the host calls, and what a graph can capture."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from radar.engine.prefill import Prefill
from radar.engine.sampler import Sampler
from radar.engine.saved_row import RowState
from radar.engine.scored import Scored
from radar.target.model import TargetModel
from radar_kernels import Share, VerifyTree

__all__ = ["PlainSteps"]


class PlainSteps:
    """One token of the target a pass, for each row of a batch.

    Args:
        target: without taps.

    Attributes:
        token: [B, 1] the last token of each text.
        active: [B] bool, the rows that hold a text; the others do nothing that counts.
        scored: what the last pass chose by; None: there was none.
    """

    def __init__(self, target: TargetModel) -> None:
        batch, device = len(target.cache.length), target.device
        self.target = target
        self.sampler = Sampler(batch, target.vocab_size, device)
        self.token = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.active = torch.ones(batch, dtype=torch.bool, device=device)
        self._one = torch.ones(batch, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]
        self.scored: Scored | None = None
        self._carried: tuple[Prefill, int, VerifyTree, Share] | None = None

    @property
    def root(self) -> Tensor:
        """[B] the last tokens."""
        return self.token[:, 0]

    def first(self, count: int) -> PlainSteps:
        """The steps of the first rows of a batch, on the same buffers."""
        view = copy.copy(self)
        view.target, view.sampler = self.target.first(count), self.sampler.first(count)
        view.token, view.active, view._one = self.token[:count], self.active[:count], self._one[:count]
        view._rows = self._rows[:count]
        return view

    def carrying(self, prefill: Prefill, rows: int) -> PlainSteps:
        """The same steps, whose pass takes `rows` tokens of a prompt along."""
        view = copy.copy(self)
        place = torch.arange(len(self._one), device=self.token.device)
        one, starts = self._one[:, None], torch.arange(len(place) + 1, dtype=torch.int32, device=place.device)
        # the last token of each text is a tree of one node
        tree = VerifyTree(self.token, one - one, one - one, one > 0, one[..., None])
        view._carried = prefill, rows, tree, Share(self._one.int(), starts, place)
        return view

    def load(self, token: Tensor, taps: Tensor, row: int) -> None:
        """Begin a text in a row, with its first token [1, 1]."""
        self.token[row] = token[0]

    @property
    def state(self) -> RowState:
        """Of the texts in the rows."""
        return RowState((self.token, self.active), self.sampler, (self.target.cache,))

    def step(self) -> Tensor:
        """The next token of each text [B, 1]."""
        return self.keep(self.choose(self.score()))

    def score(self) -> Tensor:
        """Run the target over the last token of each text, which is committed; logits [B, 1, V]."""
        logits, _ = self.target.verify(*self.target.chain(self.token)) if self._carried is None else self._mixed()
        length = self.target.cache.length
        length += self._one if len(self.active) == 1 else self.active.long()
        self.scored = Scored(logits[:, 0], self._rows, self.token)
        return logits

    def _mixed(self) -> tuple[Tensor, Tensor]:
        """The last token of each text beside a prompt's."""
        assert self._carried is not None
        prefill, rows, tree, share = self._carried
        logits, taps = self.target.verify_shared(tree, share, prefill.rider(rows))
        prefill.take(logits[-rows:], taps[-rows:])
        return logits[:-rows], taps[:-rows]

    def choose(self, logits: Tensor) -> Tensor:
        """The token [B, 1] behind each text."""
        return self.sampler.sample(logits, self.target.cache.length[:, None])

    def keep(self, token: Tensor) -> Tensor:
        """Take it as the last one, and into the history."""
        self.token.copy_(token)
        self.sampler.commit(self.token, self._one)
        return self.token
