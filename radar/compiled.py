"""torch.compile as decoders use it: whole graphs, fixed shapes, one code object per owner."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["compiled"]


def compiled(method: Callable[..., Any], *, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """A compiled form of a bound method; what it computes is cached on disk by PyTorch for the next process.

    Every call gets a code object of its own: the compiler counts recompilations per code object and gives up after
    eight, which the second or third decoder of a process would reach.
    """
    function: Any = method.__func__  # type: ignore[attr-defined]
    own = types.FunctionType(
        function.__code__.replace(co_name=function.__name__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound = types.MethodType(own, method.__self__)  # type: ignore[attr-defined]
    return torch.compile(bound, fullgraph=True, dynamic=False, options=dict(options or {}) or None)
