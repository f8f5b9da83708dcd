"""What a target may be: of a family that decodes, with a length, types and places of weights that fit."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from radar.errors import UsageError
from radar.target.adapters import check_adapters
from radar.target.families import FAMILIES, MISSING, check_shared
from radar.target.positions import MOVING, TYPES, kinds_of, moves_beyond, position_limit
from radar.target.quantised import check_quantised
from radar.target.ranks import ranks_of

__all__ = ["check_known", "check_target", "default_max_length", "stock_model", "vocabulary_size"]


def stock_model(model: Any) -> Any:
    """The transformers model that decodes: `model` itself, or what a PEFT model has put its adapters into.

    Raises:
        UsageError: for anything else, named; also for what changes a text outside of the model's own modules.
    """
    if hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel):
        check_adapters(model.peft_config)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.base_model.model  # mixed kinds
    if not isinstance(model, PreTrainedModel):
        inner = getattr(model, "module", None)
        advice = "pass its .module" if isinstance(inner, PreTrainedModel) else "load one with AutoModelForCausalLM"
        raise UsageError(
            f"model must be a loaded transformers model (a PreTrainedModel), got {type(model).__name__}: {advice}"
        )
    stock: Any = model  # its own annotations differ between releases
    if stock.get_output_embeddings() is None:
        raise UsageError(
            f"{type(model).__name__} has no output layer over a vocabulary: load it with AutoModelForCausalLM"
        )
    return stock


def default_max_length(model: Any) -> int:
    """2048 tokens, or as many as the model has positions for."""
    return min(2048, position_limit(model.config) or 2048)


def vocabulary_size(model: Any) -> int:
    """Ids that a model knows: its config's, as many as have an embedding (models may share a config)."""
    known = int(model.config.vocab_size)
    return min(known, int(getattr(model.get_input_embeddings(), "num_embeddings", known)))


def check_known(config: Any) -> None:
    """Raise UsageError for a type of model that does not decode here, and say which do."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        why = MISSING.get(str(kind))
        raise UsageError(
            f"unsupported target architecture {kind!r}{f' ({why})' if why else ''}; supported: {', '.join(FAMILIES)}"
        )


def check_target(model: Any, max_length: int, max_rows: int) -> None:
    """Raise UsageError for a model that cannot be a target, and say what can.

    Args:
        model: a loaded one.
        max_length: tokens of a text.
        max_rows: of a forward, which may stand behind a text of that length.
    """
    config = model.config
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
        raise UsageError(f"max_length must be an integer of 2 or more (prompt and output together), got {max_length!r}")
    _check_family(model, max_length)
    check_adapters(getattr(model, "peft_config", {}))
    limit = position_limit(config)
    if limit and max_length > limit:
        raise UsageError(f"max_length {max_length} is more than the {limit} positions that the model was made for")
    _check_rotary(config, max_length, max_rows)
    if model.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"the target must be float32, float16 or bfloat16, got {model.dtype}: load it with dtype=")
    check_quantised(model)
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        raise UsageError("the target is spread over several devices (device_map); load it on one device")


def _check_rotary(config: Any, max_length: int, max_rows: int) -> None:
    kinds = {str(kind.get("rope_type", "default")) for kind in kinds_of(config)}
    if unknown := kinds - {*TYPES, *MOVING}:
        raise UsageError(f"the target's rotary embedding is of type {min(unknown)!r}; known: {', '.join(TYPES)}")
    moving = moves_beyond(config)
    if moving is None or max_length + max_rows <= moving[1]:
        return
    name, limit = moving
    raise UsageError(
        f"the target's rotary embedding is of type {name!r}, whose frequencies change once a forward has a position "
        f"beyond {limit}, so that nodes of a tree would change those of the text before them: "
        + (f"use max_length={limit - max_rows} or less" if limit - max_rows > 1 else f"use one of {', '.join(TYPES)}")
        + f", got {max_length} and up to {max_rows} rows behind them"
    )


def _check_family(model: Any, max_length: int) -> None:
    config = model.config
    check_known(config)
    family = FAMILIES[config.model_type]
    both = getattr(config, "use_bidirectional_attention", None) in (True, "all")  # not "vision", of images alone
    if both or not getattr(config, "is_causal", True):
        raise UsageError(f"this {config.model_type} model attends in both directions and writes no text")
    if (
        getattr(config, "sliding_window", None)
        and not getattr(config, "use_sliding_window", True)
        and "sliding_attention" in (getattr(config, "layer_types", None) or ())
    ):
        raise UsageError(
            f"this {config.model_type} model's config has use_sliding_window=False and layers of type "
            "'sliding_attention', whose masks have the window and whose attention has none: set "
            "sliding_window=None and layer_types to 'full_attention', or use_sliding_window=True"
        )
    limit = None if family.limit is None else family.limit(config)
    if limit and max_length > limit[0]:
        raise UsageError(
            f"this {config.model_type} model decodes up to {limit[0]} tokens, since {limit[1]}: use "
            f"max_length={limit[0]} or less, got {max_length}"
        )
    if ranks_of(model) is not None:
        check_shared(config)
