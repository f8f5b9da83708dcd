"""The surroundings of a step: whatever the caller's are, ours are the same at every call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

__all__ = ["StreamOrder", "ambient"]


@contextmanager
def ambient(device: torch.device) -> Iterator[None]:
    """Inference mode, the model's device as the current one, and no autocast: a text is the model's in its own type.

    Warns, once for each place, where the caller's autocast is passed over.
    """
    if torch.is_autocast_enabled(device.type):
        warnings.warn(
            "autocast is on and does not reach RADAR, which decodes in the model's own type: load the model with "
            "dtype= to decode in another one",
            stacklevel=6,
        )
    on = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with on, torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


class StreamOrder:
    """Puts what an engine is given behind what it was given before, whichever CUDA streams its callers are on."""

    def __init__(self) -> None:
        self._last: torch.cuda.Stream | None = None

    def follow(self, device: torch.device) -> None:
        """From here on the caller's current stream works for the engine; call it within `ambient`."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)
            self._last = stream
