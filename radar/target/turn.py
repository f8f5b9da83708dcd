"""Turn: the lock that the decoders of a module take turns by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from radar.errors import BusyError

__all__ = ["Turn"]


class Turn:
    """A lock that tells its holder so, instead of letting it wait for itself: a hook on the module may ask a decoder of
    the module for a text.

    Args:
        what: the module, for the error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._holder: int | None = None

    def check(self) -> None:
        """Raise BusyError in a thread that has the module. Ask before a wait for anybody who may wait for it."""
        if self._holder == threading.get_ident():
            raise BusyError(
                f"this {self._what} is in the middle of a forward, whose hook asks a decoder of the same {self._what} "
                f"for a text: use another {self._what} there, or ask when the forward has ended"
            )

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the module for oneself. Raises BusyError in a thread that has it already."""
        self.check()
        with self._lock:
            try:
                self._holder = threading.get_ident()
                yield
            finally:
                self._holder = None
