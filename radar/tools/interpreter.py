"""Python's interpreter, as an engine's thread needs it beside threads that write answers."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable

__all__ = ["set_for_engine"]

SWITCH = 2e-4  # seconds until a thread has to let another one run

_lock = threading.Lock()
_users = 0
_before = 0.0
_froze = False


def set_for_engine() -> Callable[[], None]:
    """Set it, once the models are there; what is returned sets it back, when the last one has been called.

    The thread lets go of the interpreter with every call of PyTorch, and gets it back from a busy thread no sooner than
    the switch interval says: with Python's 5 ms the device was busy for less than half of the time. And to look for
    garbage among all that models and libraries have made took up to a third of a second, in which no text goes on
    (bench/results/batch/h200.json, `serve_gaps`).
    """
    global _users, _before, _froze
    with _lock:
        _users += 1
        if _users == 1:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH)
            if _froze := gc.get_freeze_count() == 0:  # else the program has its own ways
                gc.collect()
                gc.freeze()
    return _undo


def _undo() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            sys.setswitchinterval(_before)
            if _froze:
                gc.unfreeze()
