"""torch.compile as decoders use it: whole graphs, fixed shapes, one code object per owner."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["compiled"]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled form of a function; what the compiler makes is cached on disk by PyTorch for the next process.

    Every call gets a code object of its own: the compiler counts recompilations per code object and gives up after
    eight, which the second or third decoder of a process would reach. What is compiled goes with the code object.
    """
    source: Any = function
    own = types.FunctionType(
        source.__code__.replace(co_name=source.__name__),
        source.__globals__,
        source.__name__,
        source.__defaults__,
        source.__closure__,
    )
    return torch.compile(own, fullgraph=True, dynamic=False, options=_options())


def _options() -> dict[str, Any] | None:
    """Short kernels side by side in one launch, and launches that overlap: 2.6 % of a pass of 60 rows (bench/NOTES.md).

    Compiled code is a GPU's only; releases that lack an option go without it.
    """
    from torch._inductor import config  # takes a while, and only compiled decoders need it

    known = config.get_config_copy()
    options: dict[str, Any] = {name: True for name in ("combo_kernels", "triton.enable_pdl") if name in known}
    return options or None
