"""Before an engine's first steps: their kernels are compiled side by side, and who waits for that is told so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from radar_kernels.compile_ahead import compile_ahead

__all__ = ["rehearse"]

PATIENCE = 2.0  # seconds without a word


def rehearse(work: Callable[[], object], device: torch.device) -> None:
    """Compile what `work` launches, ahead of its first real run. Nothing of the engine's may depend on what it leaves:
    kernels do not run, PyTorch's operations do.

    Args:
        work: the steps, one after the other.
        device: theirs.
    """
    compile_ahead(work, device, line_of(device))


def line_of(device: torch.device) -> Callable[[int, int], None]:
    """What says on stderr how many kernels are done, if that takes long: over and over on a terminal, else once."""
    started, said = 0.0, False

    def say(done: int, total: int) -> None:
        nonlocal started, said
        if done == 0:
            started = time.perf_counter()
        if sys.stderr is None or time.perf_counter() - started < PATIENCE:
            return
        line = f"radar: compiling {total} kernels for {torch.cuda.get_device_name(device)}, once: {done} done"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif not said:
            print(line, file=sys.stderr, flush=True)
        said = True

    return say
