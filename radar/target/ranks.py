"""The processes that hold one model together, each a rank of `torchrun` with a part of the weights on a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from radar.errors import UsageError

__all__ = ["FOREVER", "Ranks", "check_whole", "join_ranks", "own_device", "ranks_of"]

FOREVER = timedelta(days=3650)  # whoever has nothing to do waits for as long as nobody asks for a text
_NAME = "_radar_ranks"
# torch 2.13 has another name for it, and warns of the first
_gather: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True, eq=False)
class Ranks:
    """Those of one model.

    Attributes:
        rank: of this process; 0 runs the program and decides.
        size: how many there are.
        group: of collectives on the model's device; None: torch's default one.
    """

    rank: int
    size: int
    group: Any = None

    def gather(self, x: Tensor) -> Tensor:
        """What each rank has [R, *x.shape], in their order: on all of them the same bits. A graph can hold it."""
        x = x.contiguous()
        parts = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        _gather(parts, x, group=self.group)
        return parts.view(self.size, *x.shape)

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Let integers and flags be rank 0's on all ranks, in place. A graph can hold it."""
        first = self.gather(torch.cat([x.flatten().to(torch.int64) for x in tensors]))[0]
        for x, part in zip(tensors, first.split([x.numel() for x in tensors]), strict=True):
            x.copy_(part.view_as(x))

    def keep(self, model: nn.Module) -> None:
        """The model is theirs from now on."""
        model.__dict__[_NAME] = self


def ranks_of(model: nn.Module) -> Ranks | None:
    """Those that hold the model together; None: this process has all of it."""
    found: Ranks | None = model.__dict__.get(_NAME)
    return found


def check_whole(ranks: Ranks | None, what: str) -> None:
    """Raise UsageError where ranks hold the model together, which would all have to do `what`."""
    if ranks is not None:
        raise UsageError(f"{what} needs the whole model in one process: load it without tp_plan, on one card")


def own_device(asked: str | torch.device | None = None) -> str | torch.device | None:
    """A rank's device: its GPU, by its number on the machine, unless there is none or `asked` is of another kind.

    Raises UsageError for another rank's GPU.
    """
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available() or not str(asked or "cuda").startswith("cuda"):
        return asked
    if str(asked or "cuda") not in ("cuda", f"cuda:{own}"):
        raise UsageError(
            f"device {str(asked)!r} is not this rank's: rank {own} of the machine runs on cuda:{own}, so say cuda, or "
            "leave the device out"
        )
    return f"cuda:{own}"


def join_ranks(device: torch.device) -> Ranks:
    """Meet the other processes, for a model on `device`; `torchrun` has said where. Raises UsageError if this torch
    cannot."""
    if not distributed.is_available():
        raise UsageError("this torch is built without torch.distributed: a model on several cards needs one with it")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # transformers, and whoever asks for no device, means this one
    if not distributed.is_initialized():
        backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        distributed.init_process_group(backend, timeout=FOREVER, device_id=own)
    return Ranks(distributed.get_rank(), distributed.get_world_size())
