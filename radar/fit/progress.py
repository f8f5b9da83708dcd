"""The one display of a fit: a bar over its time, and a line for what is done."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress"]

FORMAT = "{desc} |{bar:30}| {percentage:3.0f} %"


class Progress:
    """On stderr.

    Args:
        shown: False shows no bar; lines are written all the same.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown, self._stage, self._bar, self._done = shown, "", None, threading.Event()
        self._thread: threading.Thread | None = None
        self._from = self._seconds = 0.0

    def begin(self, spent: float, seconds: float) -> None:
        """The clock, of whose `seconds` so many are `spent`."""
        self._from, self._seconds = time.monotonic() - spent, seconds
        if self._shown:
            self._bar = tqdm(total=round(seconds), bar_format=FORMAT, file=sys.stderr)
            self._thread = threading.Thread(target=self._tick, daemon=True, name="radar-fit-progress")
            self._thread.start()

    def stage(self, name: str, number: int, count: int) -> None:
        """This one is in work."""
        self._stage = f"{name} ({number} of {count})"

    def say(self, line: str) -> None:
        """Above the bar."""
        tqdm.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _tick(self) -> None:
        while not self._done.wait(1.0):
            self._show()

    def _show(self) -> None:
        assert self._bar is not None
        gone, whole = round(time.monotonic() - self._from), round(self._seconds)
        self._bar.n = min(gone, whole)
        shown = " of ".join(f"{one // 60}:{one % 60:02d}" for one in (gone, whole))
        self._bar.set_description_str(f"{self._stage}, {shown}")
