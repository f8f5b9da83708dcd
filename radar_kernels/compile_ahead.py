"""Kernels compiled side by side ahead of their first launch: a rehearsal meets all of them and launches none."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from radar_kernels._launch import AsyncCompileMode, Plan, interpreting, withheld

__all__ = ["compile_ahead"]

_loading = Lock()
"""Triton's launchers are modules of one name. What Python loads a second time it writes into the module of that name
that came last, from which another thread may be about to take its own kernel's launcher."""


class _Zeros(TorchDispatchMode):
    """What kernels would have written is zero: an index made of what lay in memory would end the process."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "radar_kernels" or "empty" in func.overloadpacket.__name__:
            tree_map_only(Tensor, Tensor.zero_, result)
        return result


class _Jobs(Executor):
    """Keeps what Triton submits until `run`: beside Python that compiles, a rehearsal would wait for its lock."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append((future := Future[Any](), fn))
        return future

    def run(self, device: torch.device, progress: Callable[[int, int], None]) -> None:
        """All jobs on all cores; each is a kernel's passes, its launcher's, and the load onto the device."""
        # most of the time is LLVM's, the assembler's and the C compiler's, none of which holds Python's lock
        pool = ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(device,))
        try:
            progress(0, len(self.jobs))
            running = [pool.submit(_finish, *job) for job in self.jobs]
            for done, _ in enumerate(as_completed(running), 1):
                progress(done, len(running))
        finally:
            pool.shutdown(cancel_futures=True)

    def drop(self) -> None:
        """Whatever an interrupt has left undone, since Triton waits for all of it."""
        for future, _ in self.jobs:
            if not future.done():
                future.set_exception(CancelledError())


def _finish(future: Future[Any], compile_kernel: Callable[[], Any]) -> None:
    try:
        kernel = compile_kernel()
        with _loading:
            kernel._init_handles()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(kernel)


def _kind(argument: Any) -> Any:
    """As fine as what Triton compiles another kernel for, or finer."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return type(argument), argument == 1, argument % 16 == 0, argument.bit_length() > 31
    if hasattr(argument, "block_shape"):
        return argument.base.dtype, tuple(argument.block_shape), repr(argument.layout)
    return type(argument)


def compile_ahead(
    work: Callable[[], object], device: torch.device, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Run `work` without launching a kernel of this package, and compile those that it would have launched.

    What goes wrong goes wrong again at the first launch, which says so. Does nothing where nothing is compiled, and
    with a Triton whose way of compiling in the background has other names.

    Args:
        work: launches kernels on the device; what they would write is zero, where it was not written before.
        device: of `work`, and the current one.
        progress: is told at first and after each kernel how many are done, and of how many.
    """
    if AsyncCompileMode is None or device.type != "cuda" or interpreting():
        return
    met: set[Any] = set()

    def meet(plan: Plan, kernel: Any, arguments: tuple[Any, ...]) -> None:
        key = (id(kernel), str(plan.constants), str(plan.options), *map(_kind, arguments))
        if key not in met:
            met.add(key)
            kernel.warmup(*arguments, grid=plan.grid, **plan.constants, **plan.options)

    jobs = _Jobs()
    with AsyncCompileMode(jobs, ignore_errors=True):
        token = withheld.set(meet)
        try:
            with suppress(Exception), _Zeros():  # type: ignore[no-untyped-call]
                work()
            jobs.run(device, progress)
        finally:
            jobs.drop()
            withheld.reset(token)
