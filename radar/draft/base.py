"""What a drafter is to a round: it takes verified text in, and proposes a tree, call by call."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from radar.draft.tree import DraftTree
from radar.target.cache import StaticKVCache
from radar.target.fingerprint import Fingerprint

__all__ = ["Drafter"]


class Drafter(Protocol):
    """Draft calls on static buffers; none of them asks the host.

    A call may fill one level of the tree or several; how many it has filled is `tree.calls`, and a drafter that has
    no more to say makes its further calls do nothing.

    Attributes:
        tree: the candidates of the round.
        cache: of the drafter, committed up to the verified text.
        feature_size: width of what `begin` and `extend` read of the target.
        num_scratch_rows: rows of the cache that a round uses beyond the verified text.
        draft_dtype: of the weights that its calls read.
    """

    tree: DraftTree
    cache: StaticKVCache
    feature_size: int
    num_scratch_rows: int
    draft_dtype: torch.dtype

    def extend(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor | int) -> None:
        """Add verified text: tokens [B, A], each after the one whose taps [B, A, feature_size] stand beside it, of
        which `count` are real."""

    def begin(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor) -> None:
        """`extend` by what the last round verified, and make the round's first draft call."""

    def step(self, alive: Tensor | None = None) -> None:
        """One more draft call, for the rows that are `alive` [B]; None: for all."""

    def row(self, index: int) -> Drafter:
        """Takes verified text for one row of the batch, by `extend`."""

    def first(self, count: int, total_tokens: int, expanded: int) -> Drafter:
        """The drafter of the first rows of the batch, in the same buffers, with trees of so many nodes, of which a call
        expands so many of a level at most."""

    def reset(self) -> None:
        """Forget the text."""

    def refresh(self) -> Fingerprint:
        """Take the head as it is now; see `BoundModel.refresh`."""
