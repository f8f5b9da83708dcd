"""Draft heads on disk, in SafeAILab's layout: `config.json` beside `model.safetensors` or `pytorch_model.bin`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from radar.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

__all__ = ["load_draft", "save_draft"]

_FILES = ("model.safetensors", "pytorch_model.bin")


def save_draft(draft: Eagle3Draft, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `config.json` and `model.safetensors`, weights in `dtype`, under the released checkpoints' names."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in draft.state_dict().items()
    }
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(draft.config.to_dict(), indent=2) + "\n", encoding="utf-8")


def load_draft(
    folder: str | os.PathLike[str], *, target_hidden_size: int, device: torch.device, dtype: torch.dtype
) -> Eagle3Draft:
    """Load a released EAGLE-3 head, strictly.

    Args:
        folder: holds `config.json` and the tensors.
        target_hidden_size: of the model whose features the head reads; the file may leave it out.
        device, dtype: where and in what the head will run.

    Raises:
        FileNotFoundError: names the file that is not there.
        ValueError: for a file that cannot be read, or lists every tensor that is unknown, missing or ill-shaped.
    """
    path = Path(folder)
    config = _read_config(path, target_hidden_size)
    state = _read_tensors(path)
    draft = Eagle3Draft(config)
    state = _complete(state, draft)
    _check(state, draft, path)
    draft.load_state_dict(state)
    return draft.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _read_config(path: Path, target_hidden_size: int) -> DraftConfig:
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no draft head in {path}: config.json is missing")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(values).__name__}")
    return DraftConfig.from_dict(
        {**values, "target_hidden_size": values.get("target_hidden_size") or target_hidden_size}
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    file = next((path / name for name in _FILES if (path / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no draft head in {path}: expected {' or '.join(_FILES)}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{file} cannot be read; it may be truncated or not a checkpoint: {error}") from error
    except Exception as error:  # pickle errors have no common class of their own
        raise ValueError(f"{file} is not a file of plain tensors: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} must hold a dictionary of tensors, got {type(state).__name__}")
    return dict(state)


def _complete(state: dict[str, Tensor], draft: Eagle3Draft) -> dict[str, Tensor]:
    """Fill in what a full-vocabulary head leaves out: identity maps."""
    config = draft.config
    if config.draft_vocab_size == config.vocab_size and "d2t" not in state and "t2d" not in state:
        state = {**state, "d2t": draft.d2t, "t2d": draft.t2d}
    return state


def _check(state: Mapping[str, Tensor], draft: Eagle3Draft, path: Path) -> None:
    expected = draft.state_dict()
    problems = [f"unknown {name} {list(state[name].shape)}" for name in sorted(state.keys() - expected.keys())]
    problems += [f"missing {name} {list(expected[name].shape)}" for name in sorted(expected.keys() - state.keys())]
    for name in sorted(state.keys() & expected.keys()):
        found, wanted = state[name], expected[name]
        if found.shape != wanted.shape:
            problems.append(f"{name} has shape {list(found.shape)}, expected {list(wanted.shape)}")
        elif found.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} has type {found.dtype}, expected {wanted.dtype}")
        elif found.is_floating_point() and not bool(torch.isfinite(found).all()):
            problems.append(f"{name} holds values that are not finite")
    if not problems:
        problems = _check_vocabulary(state["d2t"], state["t2d"])
    if problems:
        raise ValueError(f"the draft head in {path} does not fit its config.json:\n  " + "\n  ".join(problems))


def _check_vocabulary(d2t: Tensor, t2d: Tensor) -> list[str]:
    """d2t holds offsets: target id = draft id + d2t[draft id], and t2d marks exactly those ids."""
    targets = d2t.long() + torch.arange(len(d2t))
    if bool((targets < 0).any()) or bool((targets >= len(t2d)).any()) or bool((targets.diff() <= 0).any()):
        return ["d2t does not map to ascending target ids; it must hold offsets (target id minus draft id), not ids"]
    marked = torch.zeros(len(t2d), dtype=torch.bool)
    marked[targets] = True
    return [] if torch.equal(marked, t2d.bool()) else ["t2d does not mark the target ids that d2t maps to"]
