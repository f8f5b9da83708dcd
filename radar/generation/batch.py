"""Many requests at once: they wait for a row, share rounds while they last, and leave when their text has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from radar.engine.rows import RowsEngine
from radar.generation.sequence import Sequence

__all__ = ["Batch"]


class Batch:
    """Drives the rows of an engine. A text may be added or closed at any time between two steps.

    Args:
        engine: makes the rounds.
    """

    def __init__(self, engine: RowsEngine) -> None:
        self._engine = engine
        self._waiting: deque[Sequence] = deque()
        self._rows: dict[int, Sequence] = {}
        self._admission: tuple[int, Sequence, Iterator[object]] | None = None

    def add(self, sequence: Sequence) -> None:
        """Decode it when there is room."""
        self._waiting.append(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a text is under way or waits."""
        return bool(self._waiting or self._rows or self._admission)

    def step(self) -> None:
        """One chunk of a prompt, if there is one to take, and one round of all rows."""
        self._drop_closed()
        self._take_prompts()
        self._drop_closed()  # at its first token, say
        if self._rows:
            for row, item in self._engine.round().items():
                self._rows[row].take(item)
        self._drop_closed()

    def _take_prompts(self) -> None:
        if self._admission is None and self._waiting and self._engine.free:
            sequence = self._waiting.popleft()
            row = self._engine.free[0]
            self._admission = row, sequence, self._engine.admit(row, sequence.request)
        if self._admission is not None:
            row, sequence, chunks = self._admission
            if (item := next(chunks)) is not None:
                self._admission = None
                self._rows[row] = sequence
                sequence.take(item)  # type: ignore[arg-type]

    def _drop_closed(self) -> None:
        """Rows whose texts have ended, or were closed, are free."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.has_ended)
        for row in [row for row, sequence in self._rows.items() if sequence.has_ended]:
            del self._rows[row]
            self._engine.release(row)
        if self._admission is not None and self._admission[1].has_ended:
            self._engine.release(self._admission[0])
            self._admission = None
