"""The rounds of one text on their way to its reader, a thread or a task of any event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

from radar.metrics import Round

__all__ = ["Made", "RoundQueue"]


class Made(NamedTuple):
    """What became of a text.

    Attributes:
        item: its next round; the error that has ended it; None: its reader has closed it.
        seconds: from the time when it got a row.
    """

    item: Round | BaseException | None
    seconds: float = 0.0


class RoundQueue:
    """One reader, any writers. A `put` may come from a finalizer."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Made] = SimpleQueue()
        self._held: deque[Made] | None = None  # until the text ends
        self._bell: Callable[[], object] | None = None

    def hold(self) -> None:
        """Hand nothing over before the text has ended: its reader wants the whole, and waking it costs the writer."""
        self._held = deque()

    def put(self, made: Made) -> None:
        """Hand it over, and wake who waits."""
        if self._held is not None:
            self._held.append(made)
            if isinstance(made.item, Round) and made.item.finish_reason is None:
                return
            with suppress(IndexError):  # somebody else may be closing the text
                while True:
                    self._items.put(self._held.popleft())
        else:
            self._items.put(made)
        bell = self._bell
        if bell is not None:
            with suppress(RuntimeError):  # the loop was closed: nobody reads there any more
                bell()

    def get(self) -> Made:
        """The next one; waits for it."""
        return self._items.get()

    async def ready(self) -> None:
        """Comes back when `get` does not wait."""
        loop = asyncio.get_running_loop()
        if self._bell is not None:
            raise RuntimeError("another task waits for this text already: one reader at a time")
        while self._items.empty():
            rung = loop.create_future()
            self._bell = partial(loop.call_soon_threadsafe, _ring, rung)
            try:
                if self._items.empty():  # nothing came while there was no bell
                    await rung
            finally:
                self._bell = None


def _ring(rung: asyncio.Future[None]) -> None:
    if not rung.done():
        rung.set_result(None)
