"""Ctrl-C and SIGTERM while something is recorded or trained: both end the work where it can be gone on with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupts", "interruptible"]


class Interrupts:
    """Raises KeyboardInterrupt at once, or, within `held`, at its end; a second one is not held back."""

    def __init__(self) -> None:
        self.count, self._holding = 0, False

    def __call__(self, number: int, frame: object) -> None:
        self.count += 1
        if not self._holding or self.count > 1:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must not stop half done."""
        before, self._holding = self.count, True
        try:
            yield
        finally:
            self._holding = False
        if self.count > before:
            raise KeyboardInterrupt


@contextmanager
def interruptible(*signals: int) -> Iterator[Interrupts]:
    """For these, SIGINT and SIGTERM if none is named. Those that somebody else handles, and other threads' are left."""
    usual: dict[int, object] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    interrupts = Interrupts()
    found = {number: signal.getsignal(number) for number in signals or usual}
    here = threading.current_thread() is threading.main_thread()
    taken = [number for number in found if here and found[number] is usual.get(number)]
    for number in taken:
        signal.signal(number, interrupts)
    try:
        yield interrupts
    finally:
        for number in taken:
            signal.signal(number, found[number])
