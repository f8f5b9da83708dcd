"""Many requests at once: they wait for a row, share rounds while they last, and leave when their text has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from radar.engine.base import BatchEngine
from radar.generation.sequence import Sequence
from radar.metrics import Round

__all__ = ["Batch"]


class Batch:
    """Drives the rows of an engine. A text may be added or closed at any time between two steps.

    Args:
        engine: makes the rounds.
    """

    def __init__(self, engine: BatchEngine) -> None:
        self._engine = engine
        self._waiting: deque[Sequence] = deque()
        self._texts: dict[object, Sequence] = {}
        self._admission: tuple[Sequence, Iterator[Round | None]] | None = None

    def add(self, sequence: Sequence) -> None:
        """Decode it when there is room."""
        self._waiting.append(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a text is under way or waits."""
        return bool(self._waiting or self._texts or self._admission)

    def step(self) -> None:
        """One chunk of a prompt, if there is one to take, and one round of all rows."""
        self._drop_closed()
        self._take_prompts()
        self._drop_closed()  # at its first token, say
        if self._texts:
            for token, item in self._engine.round().items():
                self._texts[token].take(item)
        self._drop_closed()
        self._engine.launch_next()

    def _take_prompts(self) -> None:
        if self._admission is None and self._waiting and self._engine.has_room:
            sequence = self._waiting.popleft()
            self._admission = sequence, self._engine.admit(sequence.token, sequence.request)
        if self._admission is not None:
            sequence, chunks = self._admission
            if (item := next(chunks)) is not None:
                self._admission = None
                self._texts[sequence.token] = sequence
                sequence.take(item)

    def _drop_closed(self) -> None:
        """Rows whose texts have ended, or were closed, are free."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.has_ended)
        for sequence in [sequence for sequence in self._texts.values() if sequence.has_ended]:
            del self._texts[sequence.token]
            self._engine.release(sequence.token)
        if self._admission is not None and self._admission[0].has_ended:
            self._engine.release(self._admission[0].token)
            self._admission = None
