"""A short hash of a model's weights: which model a file was made for."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["weights_digest"]


def weights_digest(module: nn.Module) -> str:
    """Short hash of the first values of every plain tensor: all of a large model would take minutes.

    Of quantised weights, which are subclasses that need not give their bytes, it takes the shape.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {getattr(tensor, 'dtype', '')} {list(getattr(tensor, 'shape', ''))}".encode())
        if type(tensor) is Tensor and tensor.device.type != "meta":
            digest.update(tensor.flatten()[:64].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
