"""Which implementation an op runs, and what the launchers share.

Triton is imported here and nowhere else. Where it is not installed the names below are inert stand-ins, so that
`radar_kernels` imports everywhere and only `backend="triton"` fails.
"""

import functools
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "HAS_GLUON",
    "AsyncCompileMode",
    "Backend",
    "Plan",
    "TensorDescriptor",
    "architecture",
    "choose_backend",
    "gl",
    "gluon_jit",
    "hopper",
    "interpreting",
    "jit",
    "load_tile",
    "next_power_of_2",
    "tl",
    "withheld",
]

Backend = Literal["triton", "torch"]


class _Missing:
    """Stands in for what triton would give: kernels can be defined, never run."""

    def __getattr__(self, name: str) -> "_Missing":
        return self

    def __call__(self, function: Any = None, *_: Any, **__: Any) -> Any:
        return self if function is None else function


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = _Missing()
try:  # Gluon is young: a Triton whose Gluon has other names does without the kernels written in it
    from triton.experimental.gluon import jit as gluon_jit
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    load_tile = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared
    HAS_GLUON = True
except (ImportError, AttributeError):
    gluon_jit = gl = hopper = TensorDescriptor = load_tile = _Missing()
    HAS_GLUON = False
try:
    from triton.runtime._async_compile import AsyncCompileMode
except ImportError:
    AsyncCompileMode = None

jit: Callable[..., Any] = triton.jit if triton else _Missing()


withheld: ContextVar[Callable[..., None] | None] = ContextVar("withheld", default=None)
"""What gets the launches (plan, kernel, arguments) of this thread in place of the device; see compile_ahead.py."""


class Plan(NamedTuple):
    """How one kernel is launched. Plain code computes it from shapes, dtypes and the architecture, so an offline
    compile test can build exactly what a GPU will run.

    With programmatic dependent launch a kernel waits before it releases the next one (`gdc_wait`, then
    `gdc_launch_dependents`), always: a kernel waits for the one in front of it alone, and reads what older ones wrote
    without asking.
    """

    grid: tuple[int, ...]
    constants: dict[str, Any]
    options: dict[str, Any]

    def launch(self, kernel: Any, *arguments: Any) -> None:
        if (meet := withheld.get()) is not None:
            meet(self, kernel, arguments)
            return
        kernel[self.grid](*arguments, **self.constants, **self.options)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def interpreting() -> bool:
    """True if Triton runs kernels in its interpreter, on the CPU."""
    return triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


@functools.lru_cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def architecture(device: torch.device) -> int:
    """Compute capability times ten (90 for an H100); 0 for the interpreter."""
    if device.type != "cuda" or interpreting():
        return 0
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def choose_backend(op: str, backend: Backend | None, *tensors: Tensor) -> Backend:
    """The implementation for these tensors: Triton on CUDA, PyTorch elsewhere, unless `backend` says otherwise."""
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f"{op}: all tensors must be on one device, got {device} and {tensor.device}")
    if backend is None:
        return "triton" if device.type == "cuda" and triton is not None else "torch"
    if backend == "torch":
        return "torch"
    if backend != "triton":
        raise ValueError(f"{op}: backend must be 'triton', 'torch' or None, got {backend!r}")
    if triton is None:
        raise ValueError(
            f"{op}: backend='triton' needs the triton package, which is not installed; use backend='torch'"
        )
    if device.type != "cuda" and not interpreting():
        raise ValueError(
            f"{op}: backend='triton' needs CUDA tensors, got {device}; on a CPU use backend='torch', or set "
            "TRITON_INTERPRET=1 before triton is imported to run the kernels in its interpreter"
        )
    return "triton"
