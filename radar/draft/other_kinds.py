"""Drafts that are no EAGLE-3 head of one dense layer: told by their files, and refused by name with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.draft.formats import has_architecture, short_name
from radar.errors import FormatError

__all__ = ["refuse_other_kinds"]

Tensors = Mapping[str, Tensor]
_PACKED = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = re.compile(r"\.(weight_(scale(_inv)?|packed|zero_point)|input_scale|qweight|qzeros|scales|g_idx|absmax)\b")
_DEEPER = re.compile(r"(mid)?layers\.[1-9]")


class _Kind(NamedTuple):
    """Attributes:
    name: a text, or made from the tensors, under short names.
    matches: whether a config and tensors are of this kind.
    why: it cannot be used here, and what can.
    """

    name: str | Callable[[Tensors], str]
    matches: Callable[[Mapping[str, Any], Tensors], bool]
    why: str


def _is(config: Mapping[str, Any], *names: str) -> bool:
    """Whether an architecture, the type of a speculators file or its algorithm has one of these names in it."""
    speculators = config.get("speculators_config")
    algorithm = speculators.get("algorithm") if isinstance(speculators, Mapping) else None
    stated = f"{config.get('architectures')} {config.get('speculators_model_type')} {algorithm}".lower()
    return any(name in stated for name in names)


def _has(tensors: Tensors, part: str) -> bool:
    return any(part in name for name in tensors)


def _is_packed(name: str, tensor: Tensor) -> bool:
    return bool(_SCALES.search(name)) or (name.endswith(".weight") and tensor.dtype in _PACKED)


def _eagle_1(config: Mapping[str, Any], tensors: Tensors) -> bool:
    """`fc` of a token's embedding and one feature, where EAGLE-3 has one of the taps and a norm of their sum."""
    fc = tensors.get("fc.weight")
    reads_two = fc is not None and fc.dim() == 2 and fc.shape[1] == 2 * fc.shape[0]
    return config.get("speculators_model_type") == "eagle" or (reads_two and not _has(tensors, ".hidden_norm."))


def _quantised_name(tensors: Tensors) -> str:
    name = next(name for name in sorted(tensors) if _is_packed(name, tensors[name]))
    return f"a quantised head ({name}, {str(tensors[name].dtype).removeprefix('torch.')})"


def _layers(tensors: Tensors) -> int:
    return 1 + max(int(found.group(1)) for name in tensors if (found := re.search(r"layers\.(\d+)\.", name)))


_IN_ONE_CALL = "it drafts all tokens in one call, where trees here grow by one call a level: take an EAGLE-3 head"
_KINDS = (
    _Kind(
        "a P-EAGLE head",
        lambda config, tensors: (
            _is(config, "peagle") or config.get("parallel_drafting") is True or _has(tensors, "mask_hidden")
        ),
        f"it reads a placeholder (mask_hidden) where an EAGLE-3 head reads its own output, since {_IN_ONE_CALL}",
    ),
    _Kind(
        "a block drafter (DFlash, DSpark or Domino)",
        lambda config, tensors: _is(config, "dflash", "dspark", "domino") or "dflash_config" in config,
        _IN_ONE_CALL,
    ),
    _Kind(
        "a head with Medusa heads",
        lambda config, tensors: (
            _is(config, "medusa") or _has(tensors, "medusa_") or _has(tensors, "parallel_draft_heads.")
        ),
        _IN_ONE_CALL,
    ),
    _Kind(
        "a head for multi-token prediction (MTP)",
        lambda config, tensors: _is(config, "mtp"),
        "it reads the target's last state alone: take an EAGLE-3 head",
    ),
    _Kind(
        "an MLP speculator",
        lambda config, tensors: _is(config, "mlpspeculator", "mlp_speculator"),
        "it has no attention over the text: take an EAGLE-3 head",
    ),
    _Kind(
        "an EAGLE-1 or EAGLE-2 head",
        _eagle_1,
        "it reads one feature beside the token's embedding, and ran as EAGLE-3 it would be right about nothing: take "
        "the EAGLE-3 head for this target",
    ),
    _Kind(
        lambda tensors: f"a language model of {_layers(tensors)} layers",
        lambda config, tensors: "fc.weight" not in tensors and any(_DEEPER.match(name) for name in tensors),
        "an EAGLE-3 head has one layer, and an fc.weight that reads the target's features",
    ),
    _Kind(
        _quantised_name,
        lambda config, tensors: any(_is_packed(name, tensor) for name, tensor in tensors.items()),
        "quantised heads are not supported: take the file in bf16",
    ),
    _Kind(
        lambda tensors: f"a head of {_layers(tensors)} layers",
        lambda config, tensors: any(_DEEPER.match(name) for name in tensors),
        "heads of one layer are supported",
    ),
    _Kind(
        "a head with experts of its own",
        lambda config, tensors: _has(tensors, ".experts."),
        "heads with one dense MLP are supported, for targets with experts too",
    ),
    _Kind(
        "a head with latent attention",
        lambda config, tensors: has_architecture(config, "Deepseek") or _has(tensors, ".kv_a_proj"),
        "heads with queries, keys and values of their own are supported",
    ),
)


def refuse_other_kinds(config: Mapping[str, Any], tensors: Tensors) -> None:
    """Raise FormatError that names the kind of draft, if a `config.json` and tensors are of one of these."""
    short = {short_name(name): tensor for name, tensor in tensors.items()}
    for kind in _KINDS:
        if kind.matches(config, short):
            name = kind.name if isinstance(kind.name, str) else kind.name(short)
            raise FormatError(f"this is {name}: {kind.why}")
