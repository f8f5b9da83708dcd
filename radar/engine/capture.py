"""Work on static buffers as CUDA graphs, and the way its result reaches the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Letter", "Mailbox", "capture", "capture_each", "on_stream"]

_T = TypeVar("_T")
_capturing = threading.Lock()


def on_stream(stream: torch.cuda.Stream, work: Callable[[], _T]) -> _T:
    """Run work on a stream, behind everything that the current one holds and before what comes next there."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = work()
    current.wait_stream(stream)
    return result


def capture(
    work: Callable[[], object], stream: torch.cuda.Stream, *, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Capture `work`, which has run on `stream` before: kernels are compiled, library workspaces are there.

    One capture at a time, as PyTorch requires of a process: other threads wait.

    Args:
        work: enqueues kernels on the current stream and does not ask the host. It lives as long as the graph: what its
            kernels read and was made before may be held by nobody else.
        stream: to capture on.
        generator: random state that the work draws from.
    """
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with _capturing:
        torch.cuda.synchronize()
        # relaxed: other threads of the process may use the GPU meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            work()
    graph.work = work  # type: ignore[attr-defined]
    return graph


def capture_each(
    work: Callable[[int], object], values: Iterable[int], stream: torch.cuda.Stream
) -> dict[int, Callable[[], object]]:
    """Run `work` on the stream for each of the values, and capture it; returns what replays it, by value."""
    replays: dict[int, Callable[[], object]] = {}
    for value in values:
        on_stream(stream, partial(work, value))
        replays[value] = capture(partial(work, value), stream).replay
    return replays


class Letter:
    """A small tensor's values on their way to the host: a copy behind the kernels that make them, and one wait when
    they are read."""

    def __init__(self, tensor: Tensor) -> None:
        self._source = tensor
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._sent = torch.cuda.Event()

    def send(self) -> None:
        self._host.copy_(self._source, non_blocking=True)
        self._sent.record()

    @property
    def has_come(self) -> bool:
        """Whether to read it takes no wait."""
        return bool(self._sent.query())

    def read(self) -> list[list[int]]:
        self._sent.synchronize()
        rows: list[list[int]] = self._host.tolist()
        return rows


class Mailbox:
    """Brings one small tensor to the host again and again: a letter can be read until the next but one is sent."""

    def __init__(self, tensor: Tensor) -> None:
        self._last, self._before = Letter(tensor), Letter(tensor)

    def send(self) -> Letter:
        self._last, self._before = self._before, self._last
        self._last.send()
        return self._last

    def read(self) -> list[list[int]]:
        """What was sent last."""
        return self._last.read()
