"""Many requests at once: they wait for a row, share rounds while they last, and leave when their text has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

from radar.engine.base import BatchEngine
from radar.generation.sequence import Sequence
from radar.metrics import Round

__all__ = ["Batch"]

PROMPTS = 1024  # tokens of short prompts that a round waits for at most


class Batch:
    """Drives the rows of an engine. A text may be added or closed at any time between two steps.

    Args:
        engine: makes the rounds.
    """

    def __init__(self, engine: BatchEngine) -> None:
        self._engine = engine
        self._waiting: deque[Sequence] = deque()
        self._texts: dict[Hashable, Sequence] = {}
        self._admission: tuple[Sequence, Iterator[int]] | None = None

    def add(self, sequence: Sequence) -> None:
        """Decode it when there is room."""
        self._waiting.append(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a text is under way or waits."""
        return bool(self._waiting or self._texts)

    def step(self) -> None:
        """Prompts, as far as others can wait for them, and one round of all rows."""
        self._take(self._engine.entered())
        self._drop_closed()
        self._take_prompts()
        if self._texts:
            self._take(self._engine.round())
        self._drop_closed()
        self._engine.launch_next()

    def _take(self, made: dict[Hashable, Round]) -> None:
        for token, item in made.items():
            self._texts[token].take(item)

    def _take_prompts(self) -> None:
        """One chunk of a long prompt, or some short ones."""
        left = PROMPTS
        while left > 0 and (self._admission or (self._waiting and self._engine.has_room)):
            if self._admission is None:
                sequence = self._waiting.popleft()
                self._texts[sequence.token] = sequence
                self._admission = sequence, self._engine.admit(sequence.token, sequence.request)
            count = next(self._admission[1], None)
            if count == 0:
                return
            if count is None:
                self._admission = None
            else:
                left -= count

    def _drop_closed(self) -> None:
        """Rows whose texts have ended, or were closed, are free."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.has_ended)
        for sequence in [sequence for sequence in self._texts.values() if sequence.has_ended]:
            del self._texts[sequence.token]
            self._engine.release(sequence.token)
            if self._admission is not None and self._admission[0] is sequence:
                self._admission = None
