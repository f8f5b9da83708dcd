"""Files of JSON and of tensors: read against a dataclass, replaced in one step, told apart by what they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from radar.errors import UsageError

__all__ = ["digest", "from_json", "replace_file"]

_T = TypeVar("_T")


def from_json(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """The dataclass of these values, lists as tuples. ValueError: a field is missing, unknown or of another type."""
    hints = get_type_hints(cls)
    if wrong := sorted(hints.keys() ^ values.keys()):
        raise UsageError(f"missing or unknown: {', '.join(wrong)}")
    return cls(**{name: _as(hint, values[name], name) for name, hint in hints.items()})


def _as(hint: Any, value: Any, name: str) -> Any:
    """A value as `tuple[X, ...]`, a float (a whole number is one), or what else the hint names."""
    if isinstance(hint, GenericAlias):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name} must be a list, got {value!r}")
        return tuple(_as(get_args(hint)[0], one, f"an entry of {name}") for one in value)
    if isinstance(value, bool) or not isinstance(value, int | float if hint is float else hint):
        raise UsageError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it when it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
    os.replace(temporary, path)


def digest(tensors: Mapping[str, Tensor], *, about: str = "") -> str:
    """SHA-256 of tensors on the CPU, with their names, shapes and types, and of a text."""
    found = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        part = tensors[name].contiguous()
        found.update(f"{name}{tuple(part.shape)}{part.dtype}".encode())
        found.update(part.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
