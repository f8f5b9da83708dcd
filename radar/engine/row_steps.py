"""What the rows of a batch keep between two rounds, and the steps of a round that drafts nothing."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.sampler import Sampler
from radar.engine.saved_row import RowState
from radar.engine.scored import Scored
from radar.policy.base import RoundSignals
from radar.target.model import TargetModel
from radar_kernels import Acceptance

__all__ = ["RowSteps"]

S = TypeVar("S", bound="RowSteps")


class RowSteps:
    """Static buffers: what the last verification leaves for the next draft. No step asks the host.

    Args:
        target, drafter: on one device.
        config: the tree's shape.

    Attributes:
        tokens, taps, count: the pairs that wait, their features, how many: [B, A], [B, A, taps], [B].
        root: [B] the text's last token, which no cache holds yet.
        result: [B, 3 + A], see `RoundSteps.commit`.
        scored: what the last pass chose by; None: there was none.
        active: [B] bool, the rows that hold a text; the others do nothing that counts.
        alive: [B] bool, the rows that still draft in this round.
        signals: that a policy may read.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, config: TreeConfig) -> None:
        batch, device = target.cache.length.shape[0], target.device
        self.target = target
        self.drafter = drafter
        self.config = config
        self.scored: Scored | None = None
        self.sampler = Sampler(batch, target.vocab_size, device)
        self.tokens = torch.zeros((batch, config.max_accepted), dtype=torch.int64, device=device)
        self.taps = torch.zeros((batch, config.max_accepted, drafter.feature_size), dtype=target.dtype, device=device)
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.root = torch.zeros(batch, dtype=torch.int64, device=device)
        self.result = torch.zeros((batch, 3 + config.max_accepted), dtype=torch.int64, device=device)
        self.active = torch.ones(batch, dtype=torch.bool, device=device)
        self.alive = self.active.clone()
        self._lengths = (target.cache.length, drafter.cache.length)
        self._held = torch.stack(self._lengths)  # when the round began
        self._one = torch.ones(batch, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]
        self.signals = RoundSignals(torch.full_like(self.root, -1), torch.zeros_like(self.root))
        path, signals = torch.zeros_like(self.tokens), self.signals
        self._accepted = Acceptance(path, self.tokens, signals.accept_length, self.count, self.root, self.result)

    def _of_first(self: S, count: int, total_tokens: int, expanded: int) -> S:
        """A view of the first rows on the same buffers; a draft call expands so many nodes for such a tree."""
        view = copy.copy(self)
        view.target, view.drafter = self.target.first(count), self.drafter.first(count, total_tokens, expanded)
        view.sampler = self.sampler.first(count)
        for name in ("tokens", "taps", "count", "root", "result", "active", "alive", "_one", "_rows"):
            setattr(view, name, getattr(self, name)[:count])
        view._lengths = (view.target.cache.length, view.drafter.cache.length)
        view._held = torch.stack(view._lengths)
        view.signals = RoundSignals(*(tensor[:count] for tensor in self.signals))
        view._accepted = Acceptance(*(tensor[:count] for tensor in self._accepted))
        return view

    @property
    def state(self) -> RowState:
        """Of the texts in a batch's rows."""
        tensors = (self.tokens, self.taps, self.count, self.root, self.active, self.signals.accept_length)
        return RowState(tensors, self.sampler, (self.target.cache, self.drafter.cache))

    def load(self, token: Tensor, taps: Tensor, row: int | None = None) -> None:
        """Take the prompt's successor [B, 1], and the taps of the prompt's last position [B, 1, taps]; of one row alone
        with B = 1."""
        rows = slice(None) if row is None else slice(row, row + 1)
        self.count[rows] = 1
        self.root[rows] = token[:, 0]
        self.tokens[rows, :1] = token
        self.taps[rows, :1] = taps
        self.signals.accept_length[rows] = -1

    def plain(self) -> Tensor:
        """A round without drafts: one token of the target, whose pair waits in `tokens` and `taps` for the next draft.

        As many pairs as a tree can accept nodes can wait; before one more, `catch_up`.

        Returns:
            The token [B, 1], which is `root` too.
        """
        self._hold()
        logits, taps = self.target.verify(*self.target.chain(self.root[:, None]))
        self.target.advance(1)
        token = self.sampler.sample(logits, self.target.cache.length[:, None])
        self.sampler.commit(token, self._one)
        place = self.count[:, None]
        self.tokens.scatter_(1, place, token)
        self.taps.scatter_(1, place[..., None].expand_as(taps), taps)
        self.count += 1
        self.root.copy_(token[:, 0])
        self.settle()
        self.scored = Scored(logits[:, 0], self._rows, token)
        return token

    def catch_up(self) -> None:
        """Add the waiting pairs to the draft's cache. A `plain` step has to follow before the next `begin`."""
        self._hold()
        self.drafter.extend(self.tokens, self.taps, self.count)
        self.count.zero_()
        self.settle()

    def _hold(self) -> None:
        """Remember how long the rows are, for `settle`."""
        if len(self.active) > 1:
            torch.stack(self._lengths, out=self._held)

    def settle(self) -> None:
        """Rows without a text, and one with a prompt that is half taken in, stay as they were."""
        if len(self.active) > 1:
            for length, held in zip(self._lengths, self._held, strict=True):
                length.copy_(torch.where(self.active, length, held))
            self.count.copy_(torch.where(self.active, self.count, self._one))
