"""Which runner a decoder takes."""

from __future__ import annotations

import torch

from radar.errors import UsageError

__all__ = ["choose_engine"]


def choose_engine(name: str | None, device: torch.device) -> str:
    """The engine named, checked against the device; None: "graph" on a GPU, "eager" elsewhere."""
    if name not in (None, "graph", "eager"):
        raise UsageError(f'engine must be "graph", "eager" or None, got {name!r}')
    if name == "graph" and device.type != "cuda":
        raise UsageError(f'engine="graph" needs a model on a CUDA device, this one is on {device}; use engine="eager"')
    return name or ("graph" if device.type == "cuda" else "eager")
