"""Back-pressure: so many texts are taken in, and the rest is told when to come again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from radar.serve.errors import ApiError

__all__ = ["Admission"]


class Admission:
    """Counts texts from their request's arrival to their last round, and answers to their last byte: who reads slowly
    keeps no place.

    Args:
        rows: texts that are decoded at once.
        max_waiting: that may wait beside them.

    Attributes:
        count: texts that are in.
        answers: requests whose answers are not sent to the end.
        is_closed: the server is about to end and takes no more.
        stopping: set when those that are left must end.
    """

    def __init__(self, rows: int, max_waiting: int) -> None:
        self._rows, self._most = rows, rows + max_waiting
        self._seconds = 1.0  # of a text, lately
        self._idle = asyncio.Event()
        self._idle.set()
        self.count = self.answers = 0
        self.is_closed = False
        self.stopping = asyncio.Event()

    def check_open(self) -> None:
        """Raises ApiError, 503, if there will be no room any more."""
        if self.is_closed:
            raise ApiError(503, "the server is shutting down: ask another one", headers={"Retry-After": "5"})

    @contextmanager
    def admitted(self, texts: int) -> Iterator[Callable[[], None]]:
        """Room for the texts of a request; what it gives is called for each that has come to its end.

        Raises ApiError: 400 for more than there ever is, 429 if there is none now, 503 if there will be none."""
        self.check_open()
        if texts > self._most:
            raise ApiError(400, f"{texts} texts in one request, and at most {self._most} fit: ask for fewer")
        if self.count + texts > self._most:
            raise ApiError(
                429,
                f"{self.count} texts are under way or wait, of {self._most} at most: try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self.patience())},
            )
        began, left = time.monotonic(), texts

        def ended() -> None:
            nonlocal left
            left, self.count = left - 1, self.count - 1
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)

        self.count, self.answers = self.count + texts, self.answers + 1
        self._idle.clear()
        try:
            yield ended
        finally:
            self.count, self.answers = self.count - left, self.answers - 1
            if not self.answers:
                self._idle.set()

    async def idle(self, seconds: float) -> bool:
        """Wait until all answers are sent, so long at most. Returns whether they are."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def patience(self) -> int:
        """Seconds after which a row should be free: those in are gone after about this, in turns of the rows."""
        turns = math.ceil((self.count - self._rows + 1) / self._rows)
        return max(1, min(60, math.ceil(self._seconds * turns)))
