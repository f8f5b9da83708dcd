"""Streamers of transformers' kind: fed with ids, and always ended, for a reader may wait in another thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from radar.errors import UsageError
from radar.generation.sequence import Sequence

__all__ = ["ended", "feed", "release"]


@contextmanager
def ended(streamer: Any) -> Iterator[None]:
    """Call the streamer's `end` once the work is done or has failed. Raises UsageError for what is no streamer."""
    if streamer is None:
        yield
        return
    missing = [name for name in ("put", "end") if not callable(getattr(streamer, name, None))]
    if missing:
        raise UsageError(
            f"streamer must have put(ids) and end() as transformers' TextStreamer has, {type(streamer).__name__} lacks "
            f"{' and '.join(missing)}"
        )
    try:
        yield
    finally:
        streamer.end()


def release(streamer: Any) -> None:
    """End one that gets nothing, if it is a streamer."""
    if callable(end := getattr(streamer, "end", None)):
        end()


def feed(sequence: Sequence, streamer: Any, *, put_prompt: bool = True) -> None:
    """Read a sequence to its end and put its prompt [1, P], then each token [1], into a streamer; None: read it."""
    if streamer is None:
        sequence.read()
        return
    if put_prompt:
        streamer.put(torch.tensor([sequence.request.input_ids]))
    for item in sequence:
        for token in item.tokens:
            streamer.put(torch.tensor([token]))
