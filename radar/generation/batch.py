"""Many requests at once: they wait for a row, share rounds while they last, and leave when their text has ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from radar.engine.base import BatchEngine
from radar.errors import RadarError
from radar.generation.guarded import RowRequest
from radar.generation.request import check_vocabulary
from radar.generation.sequence import Sequence
from radar.metrics import Round

__all__ = ["Batch"]

PROMPTS = 1024  # tokens of short prompts that a round waits for at most

Tell = Callable[[Any, Round | BaseException], None]


@dataclass
class _Row:
    """A text that the engine has been given.

    Attributes:
        sequence: takes its rounds.
        request: what the engine reads.
        begun: when there was a row for it, by `time.perf_counter`.
        is_ahead: there is none yet. So far nobody has seen anything of it.
        idle: how often in a row the engine had nothing to take of it.
    """

    sequence: Sequence
    request: RowRequest
    begun: float
    is_ahead: bool
    idle: int = 0


class Batch:
    """Drives the rows of an engine. A text may be added between two steps, and closed at any time.

    What a text raises, in a processor, a criterion or by scores that are no numbers, ends that text alone; any other
    exception is the engine's and leaves `step`.

    Args:
        engine: makes the rounds.

    Attributes:
        engine: as given; while no text is held it may be another one, or None until the next step that takes texts in.
    """

    def __init__(self, engine: BatchEngine | None = None) -> None:
        self.engine: Any = engine
        self._waiting: deque[Sequence] = deque()
        self._texts: dict[Hashable, _Row] = {}
        self._admission: tuple[_Row, Iterator[int]] | None = None
        self._is_refused = False  # when it was asked last whether a text may join

    def add(self, sequence: Sequence) -> None:
        """Decode it when there is room."""
        self._waiting.append(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a text is under way or waits."""
        return bool(self._waiting or self._texts)

    @property
    def holds_texts(self) -> bool:
        """Whether the engine has been given a text that has not ended."""
        return bool(self._texts)

    def step(
        self,
        tell: Tell = lambda sequence, item: None,
        *,
        admit: Callable[[], bool] = lambda: True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prompts, as far as others can wait for them, and one round of all rows.

        Args:
            tell: called with a sequence and the round that it took, or the error that has ended it.
            admit: asked at most once, and only where a text that waits could be given to the engine: whether it may.
            check: called behind what the engine has made; a RadarError of it ends all texts that the engine has, and
                those that wait do so until the next step.
        """
        passed = not self._texts or self._take(self.engine.entered(), tell, check)
        self.drop_closed()
        self._take_prompts(tell, admit if passed else lambda: False)
        if self._texts:
            self._take(self.engine.round(), tell, check)
        self.drop_closed()
        if self._texts:
            self.engine.launch_next()

    def drop_closed(self) -> None:
        """Rows whose texts have ended, or were closed, are free."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.has_ended)
        for row in [row for row in self._texts.values() if row.sequence.has_ended]:
            del self._texts[row.sequence.token]
            self.engine.release(row.sequence.token)
            if self._admission is not None and self._admission[0] is row:
                self._admission = None

    def fail(self, error: BaseException, tell: Tell) -> None:
        """End all texts, those that wait too, and let go of the engine."""
        failed = [*(row.sequence for row in self._texts.values()), *self._waiting]
        self.engine, self._waiting, self._texts, self._admission = None, deque(), {}, None
        for sequence in failed:
            if not sequence.has_ended:
                _fail(sequence, error, tell)

    def _take_prompts(self, tell: Tell, admit: Callable[[], bool]) -> None:
        """One chunk of a long prompt, or some short ones."""
        left, admit = PROMPTS, cache(admit)
        while left > 0 and (self._begins(admit) if self._admission is None else self._goes_on(admit)):
            assert self._admission is not None
            row, chunks = self._admission
            try:
                count = next(chunks, None)
            except RadarError as error:  # of what was asked for
                _fail(row.sequence, error, tell)
                del self._texts[row.sequence.token]  # it alone: the others stay in their rows until the round
                self.engine.release(row.sequence.token)
                self._admission = None
                continue
            row.idle = row.idle + 1 if count == 0 else 0
            if count is None:
                self._admission = None
                if not self.engine.free:  # the next one has all the rounds until a text ends
                    return
            elif count == 0:  # it waits for a row, for memory or for a round
                return
            else:
                left -= count

    def _begins(self, admit: Callable[[], bool]) -> bool:
        """Give the engine the next text, if there is one that it may have."""
        is_ahead = self.engine is not None and not self.engine.free
        if not self._waiting or (is_ahead and self._is_refused):
            return False
        self._is_refused = not admit()
        if self._is_refused:
            return False
        sequence = self._waiting.popleft()
        row = _Row(sequence, RowRequest.of(sequence.request), time.perf_counter(), is_ahead)
        self._texts[sequence.token] = row
        self._admission = row, self._chunks_of(row, hurry=bool(self._waiting) and self.engine.free > 1)
        return True

    def _goes_on(self, admit: Callable[[], bool]) -> bool:
        """Whether the prompt under way is to be taken further. Ahead of a row it may be of what has changed since."""
        assert self._admission is not None
        row, _ = self._admission
        if row.is_ahead and not self.engine.free:
            row.begun = time.perf_counter()
            return row.idle < 2  # a round may have to take something along; more often it is complete or has no pages
        if row.is_ahead and not admit():
            self._give_back()
            return False
        row.is_ahead = False
        return True

    def _give_back(self) -> None:
        """A text whose prompt was taken in ahead of a row waits again."""
        if self._admission is not None and self._admission[0].is_ahead:
            (row, _), self._admission = self._admission, None
            del self._texts[row.sequence.token]
            self.engine.release(row.sequence.token)
            self._waiting.appendleft(row.sequence)

    def _chunks_of(self, row: _Row, *, hurry: bool) -> Iterator[int]:
        check_vocabulary(row.request.input_ids, self.engine.target.vocab_size)
        yield from self.engine.admit(row.sequence.token, row.request, hurry=hurry)

    def _take(self, made: Mapping[Hashable, Round], tell: Tell, check: Callable[[], None]) -> bool:
        """Returns whether the check has passed."""
        try:
            check()
        except RadarError as error:
            self._give_back()
            for row in self._texts.values():
                _fail(row.sequence, error, tell)
            return False
        for token, item in made.items():
            row = self._texts[token]
            try:
                row.sequence.take(item)
            except BaseException as error:  # a criterion's too
                _fail(row.sequence, row.request.error or error, tell)
                continue
            row.sequence.seconds = time.perf_counter() - row.begun
            try:
                tell(row.sequence, item)
            except BaseException as error:  # `fail` passes by a text that has ended, with this round say
                _fail(row.sequence, error, tell)
                raise
        return True


def _fail(sequence: Sequence, error: BaseException, tell: Tell) -> None:
    sequence.finish_reason = "error"
    tell(sequence, error)
