"""The same work for many inputs, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

__all__ = ["side_by_side"]


def side_by_side(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int) -> list[Any]:
    """function(*call) of every call: in `workers` processes of one thread each, or in this one if that is 1."""
    if workers == 1:
        return [function(*call) for call in calls]
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))
