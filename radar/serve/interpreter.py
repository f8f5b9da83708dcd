"""Python's interpreter, as an engine's thread needs it beside threads that write answers."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

__all__ = ["set_for_engine"]

SWITCH = 2e-4  # seconds until a thread has to let another one run


def set_for_engine() -> Callable[[], None]:
    """Set it, once the models are there; what is returned sets it back.

    The thread lets go of the interpreter with every call of PyTorch, and gets it back from a busy thread no sooner than
    the switch interval says: in Python's 5 ms a step would take several times as long as on the device. And to look
    for garbage among all that models and libraries have made takes a third of a second, in which no text goes on.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()

    def undo() -> None:
        gc.unfreeze()
        sys.setswitchinterval(before)

    return undo
