"""What rounds of several rows are made of: texts, steps, and a number of rows that takes part."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from radar.engine.base import EngineRequest
from radar.engine.logprobs import Watch
from radar.engine.sampler import Sampler
from radar.engine.saved_row import RowState
from radar.metrics import Round
from radar.target.model import TargetModel

__all__ = ["Chunk", "Flight", "RowSteps", "Text", "Width", "widths"]


@dataclass(eq=False)
class Text:
    """What the host knows of a row.

    Attributes:
        key, request: of the caller.
        number: how many came before.
        ids: prompt and output so far.
        pending: pairs that wait for a draft call.
        first: what `entered` will tell, the row in which its token was, and the token's log-probabilities.
        has_left: what is still made for it is for nobody.
    """

    key: Hashable
    request: EngineRequest
    number: int
    ids: list[int]
    pending: int = 1
    first: Round | None = None
    first_row: int = 0
    watch: Watch | None = None
    has_left: bool = False


class Chunk(NamedTuple):
    """Tokens of a prompt that are to be taken in: how many, and what does it where no round takes them along."""

    tokens: int
    run: Callable[[], object]


class RowSteps(Protocol):
    """What rounds are made of, for all rows of a batch.

    Attributes:
        target: with its cache.
        sampler: of all rows.
        active: [B] bool, the rows that hold a text.
    """

    target: TargetModel
    sampler: Sampler
    active: Tensor

    @property
    def root(self) -> Tensor:
        """[B] the last token of each text."""

    def load(self, token: Tensor, taps: Tensor, row: int) -> None:
        """Begin a text in a row: its first token [1, 1], and the taps of the prompt's last position [1, 1, taps]."""

    @property
    def state(self) -> RowState:
        """Of the texts in the rows."""


class Flight(Protocol):
    """A round under way."""

    def read(self) -> list[Round]:
        """What it made of each row, also of those that hold no text; waits for it. One round may have been launched
        since."""


class Width(Protocol):
    """Makes rounds of the first `rows` rows."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def carried(self) -> int:
        """Tokens of a prompt that a round may take along; 0: none."""

    def launch(self, texts: Sequence[Text], chunk: Chunk | None) -> Flight:
        """Start a round of the texts, which stand in the first rows, and take a chunk in, with it or before."""

    def may_follow(self, flight: Any) -> bool:
        """Whether the next round can start before the host knows what this one of its flights has made. Asked at most
        once a round: it settles what the next one is."""

    def by_host(self, texts: Sequence[Text], samplers: Sequence[Sampler]) -> list[Round]:
        """A round in which processors on the host choose the tokens of some texts."""


def widths(rows: int) -> list[int]:
    """Numbers of rows that rounds are made for: the smallest that holds all texts is taken."""
    return [*(2**i for i in range(rows.bit_length()) if 2**i < rows), rows]
