"""Turn: the lock that the decoders of a module take turns by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from radar.errors import BusyError

__all__ = ["Turn"]


class Turn:
    """A lock that tells its holder so, instead of letting it wait for itself, when it is asked for once more: a hook on
    the module may ask another decoder of the module for a text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the module for oneself. Raises BusyError in a thread that has it already."""
        if self._holder == threading.get_ident():
            raise BusyError(
                "this model is in the middle of a forward, whose hook asks a decoder of the same model for a text: use "
                "another model there, or ask when the forward has ended"
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None
