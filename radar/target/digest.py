"""A short hash of a model's weights: which model a file was made for."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from radar.target.fingerprint import parts_of

__all__ = ["weights_digest"]


def weights_digest(module: nn.Module) -> str:
    """Short hash of the first values of every tensor, and of what quantised ones consist of: all of a large model would
    take minutes. Of subclasses that do not say what they consist of it takes the shape.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {getattr(tensor, 'dtype', '')} {list(getattr(tensor, 'shape', ''))}".encode())
        for part in parts_of(tensor) if isinstance(tensor, Tensor) else ():
            if type(part) is Tensor and part.device.type != "meta":
                digest.update(part.flatten()[:64].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
