"""What a pass of the target has chosen its tokens by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Scored"]


class Scored(NamedTuple):
    """Scores of a pass, the same storage after every replay of a graph.

    Attributes:
        logits: [M, V], the target's own.
        places: [B, A] int64, the row of them that each token was chosen by.
        tokens: [B, A] int64.
    """

    logits: Tensor
    places: Tensor
    tokens: Tensor
