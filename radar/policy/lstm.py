"""The paper's stop policy (RADAR, arXiv 2512.14069, section "prediction model"): an LSTM over the beam's scores.

`PolicyNetwork` is the module that training sees, `RadarPolicy` serves it through the stop-policy protocol, and
`load_policy` and `save_policy` move it from and to disk. Parameter names are upstream's: its state dicts load strictly.
"""

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
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.errors import FormatError, NotFoundError, UsageError
from radar.files import replacing
from radar.policy.base import Settled
from radar_kernels import PolicyWeights, lstm_step

__all__ = ["SCORE_FLOOR", "PolicyNetwork", "RadarPolicy", "load_policy", "save_policy"]

SCORE_FLOOR = -100.0
"""Scores below it (a beam with fewer candidates than its width holds -inf) count as it: 0 * inf would be NaN."""

FORMAT, FORMAT_VERSION = "radar-policy", 1
WEIGHTS_FILE, CONFIG_FILE = "policy.safetensors", "config.json"
_DEFAULT_SIZES = (10, 128, 128)  # input width I, LSTM width H, MLP width M of the published policies


class PolicyNetwork(nn.Module):
    """LSTM(I -> H); logits = Linear(M -> 2)(dropout(relu(Linear(H + I -> M)([h, scores])))); action 0 = stop.

    Raw cumulative log-probabilities go in, as in the paper's code: no depth, no normalisation, zero state at the root.
    """

    def __init__(
        self, input_size: int = 10, hidden_size: int = 128, *, mlp_size: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("mlp_size", mlp_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"PolicyNetwork: {name} must be a positive integer, got {size!r}")
        if not 0.0 <= dropout < 1.0:
            raise UsageError(f"PolicyNetwork: dropout must be from 0 to below 1, got {dropout!r}")
        self.input_size, self.hidden_size, self.mlp_size = input_size, hidden_size, mlp_size
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size + input_size, mlp_size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_size, 2)
        )

    def forward(self, scores: Tensor) -> Tensor:
        """Beam scores of successive levels [N, T, I] -> logits [N, T, 2] of (stop, continue)."""
        scores = scores.clamp(min=SCORE_FLOOR)
        hidden, _ = self.lstm(scores)
        logits: Tensor = self.mlp(torch.cat((hidden, scores), dim=-1))
        return logits

    def weights(self, device: torch.device | None = None) -> PolicyWeights:
        """Copies of the parameters in float32, in the order of `radar_kernels.lstm_step`."""
        state = self.state_dict()
        return PolicyWeights(
            *(state[n].detach().to(device=device, dtype=torch.float32, copy=True).contiguous() for n in _NAMES)
        )


_NAMES = (
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.bias_ih_l0",
    "lstm.bias_hh_l0",
    "mlp.0.weight",
    "mlp.0.bias",
    "mlp.3.weight",
    "mlp.3.bias",
)


class RadarPolicy(Settled):
    """Serves a trained network: one `lstm_step` a draft call on static state, nothing asked of the host.

    Args:
        network: the network, or the path of one (see `load_policy`). Its weights are copied by `bind`: after more
            training, make another policy.
        sample: False stops where P(stop) > 1/2. True draws the action, as the paper's code does: the uniform numbers of
            a round are drawn together at `reset`, so that the body of a device-side loop holds no random op. Inside a
            captured graph `generator` has to be registered (`graph.register_generator_state`).
        seed: of the draws. `bind` seeds anew, so two equal runs make equal decisions.
    """

    _generator: torch.Generator | None = None

    def __init__(self, network: PolicyNetwork | str | os.PathLike[str], *, sample: bool = False, seed: int = 0) -> None:
        self.network = network if isinstance(network, PolicyNetwork) else load_policy(network)
        self.sample, self.seed = sample, seed

    def __repr__(self) -> str:
        net = self.network
        drawn = f", sample=True, seed={self.seed}" if self.sample else ""
        return f"RadarPolicy(input_size={net.input_size}, hidden_size={net.hidden_size}{drawn})"

    @property
    def generator(self) -> torch.Generator | None:
        """What `sample` draws from, once bound."""
        return self._generator

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        width = self.network.input_size
        if tree.tree_top_k != width:
            raise UsageError(
                f"this policy reads {width} scores a level, but the tree has tree_top_k={tree.tree_top_k}: "
                f"use TreeConfig(tree_top_k={width}) or train a policy for {tree.tree_top_k}"
            )
        self._weights = self.network.weights(device)
        self._state = torch.zeros(2, batch_size, self.network.hidden_size, device=device)
        if self.sample:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            self._draws = torch.zeros(tree.max_calls, batch_size, device=device)
            self._call = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        self._state.zero_()
        if self.sample:
            self._draws.uniform_(generator=self._generator)
            self._call.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        """Scores [B, I] -> P(stop) above 1/2, or above this call's uniform number [B] bool."""
        threshold = None
        if self.sample:
            threshold = self._draws.index_select(0, self._call).squeeze(0)
            self._call.add_(1).remainder_(self._draws.shape[0])
        hidden, cell = self._state
        return lstm_step(scores, hidden, cell, self._weights, threshold=threshold, floor=SCORE_FLOOR, update=True).stop


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
        if (path / CONFIG_FILE).exists():
            config = _read_config(path / CONFIG_FILE)
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
    problems = _problems(state, input_size, hidden_size, mlp_size)
    found = {"input_size": input_size, "hidden_size": hidden_size}
    problems += [
        f"{CONFIG_FILE} says {k}={config[k]!r}, the tensors {v}" for k, v in found.items() if config.get(k, v) != v
    ]
    if problems:
        raise FormatError(f"{file} is not a usable stop policy:\n  " + "\n  ".join(problems))
    network = PolicyNetwork(input_size, hidden_size, mlp_size=mlp_size)
    network.load_state_dict({name: state[name].float() for name in _NAMES})
    return network.eval()


def save_policy(
    network: PolicyNetwork, folder: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `policy.safetensors` (float32) and `config.json`: format, version, sizes and `metadata`.

    Each file is replaced in one step, so a crash leaves the old one or the new one.
    """
    sizes = {"input_size": network.input_size, "hidden_size": network.hidden_size, "mlp_size": network.mlp_size}
    config: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **sizes}
    if clash := sorted(config.keys() & (metadata or {}).keys()):
        raise UsageError(f"save_policy: metadata may not name {', '.join(clash)}")
    config.update(metadata or {})
    text = json.dumps(config, indent=2) + "\n"
    weights = network.weights(torch.device("cpu"))
    with replacing(folder) as place:
        safetensors.torch.save_file(dict(zip(_NAMES, weights, strict=True)), place / WEIGHTS_FILE)
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
    return config


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(I, H, M) that most tensors agree on, so that one ill-shaped tensor is named alone and not its neighbours."""

    def dim(name: str, axis: int) -> int | None:
        return state[name].shape[axis] if name in state and state[name].dim() > axis else None

    def vote(votes: list[int | None], default: int) -> int:
        valid = [vote for vote in votes if vote is not None and vote > 0]
        return Counter(valid).most_common(1)[0][0] if valid else default

    gates = [dim(name, 0) for name in _NAMES[:4]]
    hidden = vote([dim(_NAMES[1], 1), *(None if g is None else g // 4 for g in gates)], _DEFAULT_SIZES[1])
    mlp = vote([dim(_NAMES[4], 0), dim(_NAMES[5], 0), dim(_NAMES[6], 1)], _DEFAULT_SIZES[2])
    joined = dim(_NAMES[4], 1)
    width = vote([dim(_NAMES[0], 1), None if joined is None else joined - hidden], _DEFAULT_SIZES[0])
    return width, hidden, mlp


def _problems(state: Mapping[str, Tensor], width: int, hidden: int, mlp: int) -> list[str]:
    shapes = ((4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,), (mlp, hidden + width), (mlp,))
    expected = dict(zip(_NAMES, (*shapes, (2, mlp), (2,)), strict=True))
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
