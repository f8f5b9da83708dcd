"""Trained policies from and to disk."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from radar.errors import FormatError, NotFoundError, UsageError
from radar.files import replacing
from radar.policy.network import NODE_NAMES, STOP_NAMES, PolicyNetwork

__all__ = ["load_policy", "save_policy"]

FORMAT, FORMAT_VERSION = "radar-policy", 1
WEIGHTS_FILE, CONFIG_FILE = "policy.safetensors", "config.json"
_DEFAULT_SIZES = (10, 128, 128)  # input width I, LSTM width H, MLP width M of the published policies


def load_policy(path: str | os.PathLike[str]) -> PolicyNetwork:
    """Read a policy: a state dict saved by torch, a `.safetensors`, or a folder that `save_policy` wrote.

    Returns:
        the network in float32 on the CPU, in evaluation mode. Its sizes are those of the tensors.

    Raises:
        NotFoundError: nothing is there.
        FormatError: it is something else or torn; tensors are missing, unknown, ill-shaped or not finite (all listed).
    """
    path = Path(path)
    config: Any = {}
    file = path
    if path.is_dir():
        file = path / WEIGHTS_FILE
    if file.name == WEIGHTS_FILE and (beside := file.with_name(CONFIG_FILE)).exists():
        config = _read_config(beside)
    if not file.exists():
        raise NotFoundError(f"no stop policy at {file}{_found_instead(path)}")
    if file.suffix == ".json":
        raise FormatError(f"{file} is no stop policy, but may describe one: give its folder, {file.parent}")
    data = file.read_bytes()  # here, because torch reports some torn files as OSError
    try:
        if file.suffix == ".safetensors":
            state: Any = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for foreign and torn files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{file} is not a stop policy, or is cut off: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(
            f"{file} is not a stop policy: expected a state dict of tensors, found {type(state).__name__}"
        )
    input_size, hidden_size, mlp_size = _sizes(state)
    nodes = config.get("nodes", [])
    problems = _problems(state, input_size, hidden_size, mlp_size, len(nodes))
    found = {"input_size": input_size, "hidden_size": hidden_size}
    problems += [
        f"{CONFIG_FILE} says {k}={config[k]!r}, the tensors {v}" for k, v in found.items() if config.get(k, v) != v
    ]
    if not nodes and any(name in state for name in NODE_NAMES):
        problems.append(f"it chooses among numbers of nodes, which {CONFIG_FILE} beside it would name: give its folder")
    if problems:
        raise FormatError(f"{file} is not a usable stop policy:\n  " + "\n  ".join(problems))
    network = PolicyNetwork(input_size, hidden_size, mlp_size=mlp_size, nodes=nodes)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.eval()


def save_policy(
    network: PolicyNetwork, folder: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `policy.safetensors` (float32) and `config.json`: format, version, sizes and `metadata`.

    Each file is replaced in one step, so a crash leaves the old one or the new one.
    """
    sizes = {"input_size": network.input_size, "hidden_size": network.hidden_size, "mlp_size": network.mlp_size}
    config: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **sizes}
    weights = dict(zip(STOP_NAMES, network.weights(torch.device("cpu")), strict=True))
    if network.nodes:
        config["nodes"] = list(network.nodes)
        weights |= zip(NODE_NAMES, network.node_weights(torch.device("cpu")), strict=True)
    if clash := sorted(config.keys() & (metadata or {}).keys()):
        raise UsageError(f"save_policy: metadata may not name {', '.join(clash)}")
    config.update(metadata or {})
    text = json.dumps(config, indent=2) + "\n"
    with replacing(folder) as place:
        safetensors.torch.save_file(weights, place / WEIGHTS_FILE)
        (place / CONFIG_FILE).write_text(text, encoding="utf-8")


def _found_instead(path: Path) -> str:
    """What a folder without a policy holds."""
    names = sorted(file.name for file in path.iterdir())[:4] if path.is_dir() else []
    if not names:
        return ": expected a folder or file that `radar train-policy` has written"
    return f": expected a folder that `radar train-policy` has written, this one holds {', '.join(names)}"


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise FormatError(f"{file} does not describe a stop policy: it lacks format={FORMAT!r}")
    if config.get("version") != FORMAT_VERSION:
        raise FormatError(f"{file}: version {config.get('version')!r} is unknown, this code reads {FORMAT_VERSION}")
    nodes = config.get("nodes", [])
    if not isinstance(nodes, list) or not all(isinstance(n, int) and 2 <= n <= 256 for n in nodes):
        raise FormatError(f"{file}: nodes must be a list of integers from 2 to 256, got {nodes!r}")
    if nodes != sorted(set(nodes)):
        raise FormatError(f"{file}: nodes must be ascending, got {nodes!r}")
    return config


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(I, H, M) that most tensors agree on, so that one ill-shaped tensor is named alone and not its neighbours."""

    def dim(name: str, axis: int) -> int | None:
        return state[name].shape[axis] if name in state and state[name].dim() > axis else None

    def vote(votes: list[int | None], default: int) -> int:
        valid = [vote for vote in votes if vote is not None and vote > 0]
        return Counter(valid).most_common(1)[0][0] if valid else default

    gates = [dim(name, 0) for name in STOP_NAMES[:4]]
    hidden = vote([dim(STOP_NAMES[1], 1), *(None if g is None else g // 4 for g in gates)], _DEFAULT_SIZES[1])
    mlp = vote([dim(STOP_NAMES[4], 0), dim(STOP_NAMES[5], 0), dim(STOP_NAMES[6], 1)], _DEFAULT_SIZES[2])
    joined = dim(STOP_NAMES[4], 1)
    width = vote([dim(STOP_NAMES[0], 1), None if joined is None else joined - hidden], _DEFAULT_SIZES[0])
    return width, hidden, mlp


def _problems(state: Mapping[str, Tensor], width: int, hidden: int, mlp: int, choices: int) -> list[str]:
    shapes = ((4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,), (mlp, hidden + width), (mlp,))
    expected = dict(zip(STOP_NAMES, (*shapes, (2, mlp), (2,)), strict=True))
    if choices:
        head = ((mlp, hidden + width + choices), (mlp,), (choices, mlp), (choices,))
        expected |= zip(NODE_NAMES, head, strict=True)
    problems = [f"{name}: unknown tensor {list(state[name].shape)}" for name in state if name not in expected]
    for name, shape in expected.items():
        if name not in state:
            problems.append(f"{name}: missing, expected {list(shape)}")
        elif state[name].shape != shape:
            problems.append(f"{name}: expected {list(shape)}, found {list(state[name].shape)}")
        elif not state[name].is_floating_point():
            problems.append(f"{name}: expected floating point, found {state[name].dtype}")
        elif not (finite := state[name].float().isfinite()).all():
            problems.append(f"{name}: {int((~finite).sum())} of {finite.numel()} values are not finite")
    return problems
