"""The files of a checkpoint folder: `config.json`, and tensors in one safetensors file, in shards, or in a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from radar.errors import FormatError, NotFoundError

__all__ = ["read_json", "read_tensors"]

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_json(file: Path) -> dict[str, Any]:
    """An object. Raises FormatError for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise FormatError(f"{file} must hold a JSON object, got {type(values).__name__}")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, in the first of `_FILES` that is there.

    Raises:
        NotFoundError: if none is, or a shard is missing.
        FormatError: for a file that cannot be read, or holds other things than tensors.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise NotFoundError(f"no draft head in {folder}: expected {_FILES[0]} or {_FILES[2]}, or shards of one")
    return _read_shards(file) if file.suffix == ".json" else _read_file(file)


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Shards named by an index. Each tensor must be in the shard that the index names, and nowhere else."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(f"{index} must hold a weight_map from tensors to files")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        if file.name != name:
            raise FormatError(f"{index} names the shard {name!r}, which is not a file of its folder")
        if not file.is_file():
            raise NotFoundError(f"{index} names the shard {name}, which is missing")
        found = _read_file(file)
        wanted = {tensor for tensor, place in places.items() if place == name}
        if found.keys() != wanted:
            differing = ", ".join(sorted(found.keys() ^ wanted))
            raise FormatError(f"{file} does not hold what {index.name} says; they differ in {differing}")
        state.update(found)
    return state


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise FormatError(f"{file} cannot be read; it may be truncated or not a checkpoint: {error}") from error
    except Exception as error:  # pickle errors have no common class of their own
        raise FormatError(f"{file} is not a file of plain tensors: {error}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise FormatError(f"{file} must hold a dictionary of tensors, got {type(state).__name__}")
    return dict(state)
