"""What the host knows, brought to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["upload"]


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor there, without a wait for what the device does now: `torch.tensor(values, device=device)`
    and `tensor[row] = number` are copied from memory that is not pinned, behind all that has been launched."""
    host = torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
