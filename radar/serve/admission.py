"""Back-pressure: so many texts are taken in, and the rest is told when to come again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from radar.serve.errors import ApiError

__all__ = ["Admission"]


class Admission:
    """Counts texts from their request's arrival to its answer's last byte.

    Args:
        rows: texts that are decoded at once.
        max_waiting: that may wait beside them.

    Attributes:
        count: texts that are in.
        is_closed: the server is about to end and takes no more.
        stopping: set when those that are left must end.
    """

    def __init__(self, rows: int, max_waiting: int) -> None:
        self._rows, self._most = rows, rows + max_waiting
        self._seconds = 1.0  # of a request, lately
        self._idle = asyncio.Event()
        self._idle.set()
        self.count = 0
        self.is_closed = False
        self.stopping = asyncio.Event()

    @contextmanager
    def admitted(self, texts: int) -> Iterator[None]:
        """Room for the texts of a request. Raises ApiError: 400 for more than there ever is, 429 if there is none now,
        503 if there will be none."""
        if self.is_closed:
            raise ApiError(503, "the server is shutting down: ask another one", headers={"Retry-After": "5"})
        if texts > self._most:
            raise ApiError(400, f"{texts} texts in one request, and at most {self._most} fit: ask for fewer", param="n")
        if self.count + texts > self._most:
            raise ApiError(
                429,
                f"{self.count} texts are under way or wait, of {self._most} at most: try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self._patience())},
            )
        self.count += texts
        self._idle.clear()
        began = time.monotonic()
        try:
            yield
        finally:
            self.count -= texts
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            if not self.count:
                self._idle.set()

    async def idle(self, seconds: float) -> bool:
        """Wait until no text is in, so long at most. Returns whether none is."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _patience(self) -> int:
        """Seconds after which a row should be free: those in are gone after about this, in turns of the rows."""
        turns = math.ceil((self.count - self._rows + 1) / self._rows)
        return max(1, min(60, math.ceil(self._seconds * turns)))
