"""Which of several processes this one is."""

from __future__ import annotations

import os

from radar.errors import UsageError

__all__ = ["process_share"]


def process_share() -> tuple[int, int]:
    """(index, count) of this process among those that `accelerate launch` started; (0, 1) without it."""
    rank, count = os.environ.get("RANK"), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return 0, 1
    if rank is None:
        raise UsageError(f"WORLD_SIZE={count} says that there are others, and no RANK which this one is")
    return int(rank), count
