"""What the sweeps share: compiling many variants at once, and the time of a captured graph."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["Launches", "compile_launches", "launch_recorder", "replay_microseconds"]

Launches = dict[tuple[Any, ...], tuple[Any, Any, tuple[Any, ...]]]


def launch_recorder(launches: Launches) -> Callable[..., None]:
    """A stand-in for `Plan.launch` that notes every launch that Triton would compile anew, and runs none."""

    def record(plan: Any, kernel: Any, *arguments: Any) -> None:
        kinds = tuple(None if isinstance(a, torch.Tensor) else (a == 1, a % 16 == 0) for a in arguments)
        launches[kernel.fn.__name__, str(plan.constants), str(plan.options), kinds] = (kernel, plan, arguments)

    return record


def compile_launches(launches: Launches) -> None:
    """Compile recorded launches, several at a time."""

    def compile_one(launch: tuple[Any, Any, tuple[Any, ...]]) -> None:
        kernel, plan, arguments = launch
        kernel.warmup(*arguments, grid=plan.grid, **plan.constants, **plan.options)

    started = time.perf_counter()
    for launch in {kernel: (kernel, *rest) for kernel, *rest in launches.values()}.values():
        compile_one(launch)  # one of each first: it sets up what the others share
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(compile_one, launches.values()))
    print(f"{len(launches)} kernels compiled in {time.perf_counter() - started:.0f} s", flush=True)


def replay_microseconds(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    """Time of one of the `calls` in a graph: the median of seven replays, after one that does not count."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    times = []
    for _ in range(8):
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) * 1e3 / calls)
    return sorted(times[1:])[3]
