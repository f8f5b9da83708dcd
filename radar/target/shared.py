"""One object for a module, shared by all who use the module, gone with the last of them.

It is named on the module itself, by a reference that keeps nothing alive: no registry of the process knows models.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["shared"]

_T = TypeVar("_T")
_NAME = "_radar_shared"
_making = threading.Lock()


class _Handle:
    """A weak reference that copies and pickles of the module leave behind."""

    def __init__(self, target: Any = None) -> None:
        self.get: Callable[[], Any] = (lambda: None) if target is None else weakref.ref(target)

    def __reduce__(self) -> tuple[type[_Handle], tuple[()]]:
        return _Handle, ()


def shared(module: nn.Module, make: Callable[[], _T]) -> _T:
    """The module's object: the one that somebody holds, or a new one. Other threads wait while it is made."""
    with _making:
        handle = module.__dict__.get(_NAME)
        found: _T | None = None if handle is None else handle.get()
        if found is None:
            found = make()
            module.__dict__[_NAME] = _Handle(found)
        return found
