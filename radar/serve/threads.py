"""Threads for work that an event loop waits for, and that its process does not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

__all__ = ["DaemonThreads"]

MOST = 32
Work = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads(ThreadPoolExecutor):
    """An event loop's default executor. Python waits at its end for the threads of the usual one, and a step of the
    engine that hangs would keep a server from ending."""

    def __init__(self) -> None:
        super().__init__(1)  # of which no thread is ever started
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = Lock()
        self._free = self._count = 0  # threads that wait for work, and all

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`."""
        future: Future[Any] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
            elif self._count < MOST:
                self._count += 1
                Thread(target=self._run, daemon=True).start()
        self._work.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Threads end when their work has; nobody waits for them."""
        with self._lock:
            for _ in range(self._count):
                self._work.put(None)
            self._count = 0

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # who waits gets it
                    future.set_exception(error)
            del work, future, call  # what they hold is not kept until the next
            with self._lock:
                self._free += 1
