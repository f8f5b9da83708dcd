"""How many processes `torchrun` has started. torch is not imported: a command asks before it does anything."""

from __future__ import annotations

import os

__all__ = ["launched_ranks"]


def launched_ranks() -> int:
    """Of this job, by the environment; 1 without `torchrun`."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() and "RANK" in os.environ else 1
