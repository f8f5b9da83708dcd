"""A `config.json` of a known format as the head's geometry, with a sentence for each choice that it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from radar.draft.config import DraftConfig
from radar.draft.formats import AUX_FLAGS, MODELOPT_FLAGS, DraftFormat
from radar.errors import FormatError

__all__ = ["Reading", "read_config"]

TAPS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class Reading:
    """A config as the loader understood it.

    Attributes:
        config: the head's geometry.
        assumed: a sentence for each choice that the file did not make.
        doubtful: the fields of `config` that those sentences leave open.
        ignored: keys of `config.json` that were not read.
        made_for: the target that the file names, if it names one.
    """

    config: DraftConfig
    assumed: tuple[str, ...]
    doubtful: tuple[str, ...]
    ignored: tuple[str, ...]
    made_for: str | None


def read_config(
    entry: DraftFormat,
    values: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    target_hidden_size: int,
    strict: bool = True,
) -> Reading:
    """Read a `config.json` of one format; sizes that it leaves out come from the tensors (under canonical names).

    Args:
        strict: refuse a file that leaves a field of `must_state` open; otherwise the default is taken and named.

    Raises:
        FormatError: names the key that is missing, wrong, contradictory or not supported.
    """
    assumed: list[str] = []
    doubtful: list[str] = []
    flat = _flatten(entry, values, assumed)
    _refuse(entry, flat)
    flat = {entry.aliases.get(key, key): value for key, value in flat.items() if value is not None}
    _read_taps(entry, values, flat, assumed, doubtful)
    _fill_sizes(entry, flat, state, target_hidden_size, assumed)
    for key, value in entry.defaults.items():
        if key not in flat:
            flat[key] = value
            assumed.append(f"{key} is not stated: {value}, which {entry.name} leaves out")
    if "rms_norm_eps" not in flat:
        assumed.append("rms_norm_eps is not stated: 1e-05")
    for key in entry.must_state:
        if key not in flat and strict:
            raise FormatError(
                f"config.json does not state {key}, and readers of {entry.name} files take different defaults: set it "
                "to true or false (`radar doctor` measures both)"
            )
        if key not in flat:
            doubtful.append(key)
            assumed.append(f"{key} is not stated: false")
    for key in entry.doubtful:
        if flat.get(key) is True:
            doubtful.append(key)
            assumed.append(f"{key} is taken as stated; some {entry.name} files say so and mean another norm")
    if not any(isinstance(flat.get(key), Mapping) and "rope_theta" in flat[key] for key in _ROPE) and (
        "rope_theta" not in flat
    ):
        doubtful.append("rope_theta")
        assumed.append("rope_theta is not stated: 10000, whatever the target's is")
    for key, tensors in _EVIDENCE.items():
        flat.setdefault(key, all(name in state for name in tensors))
    config = DraftConfig.from_dict(flat)
    made_for = _made_for(values)
    if config.hidden_size != target_hidden_size and not config.own_embedding:
        raise FormatError(
            f"the head's hidden size is {config.hidden_size} and the target's {target_hidden_size}, so it was made for "
            f"{made_for or 'another target'}: a head of another size than its target has an embedding of its own "
            "(embed_tokens.weight), and the file holds none"
        )
    return Reading(config, tuple(assumed), tuple(doubtful), _ignored(entry, values), made_for)


def _made_for(values: Mapping[str, Any]) -> str | None:
    """The target that a speculators file names."""
    speculators = values.get("speculators_config")
    verifier = speculators.get("verifier") if isinstance(speculators, Mapping) else None
    name = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    return name if isinstance(name, str) and name else None


_EVIDENCE = {
    "norm_before_fc": ("input_norm.weight",),
    "fc_norm": ("fc_norm.0.weight",),
    "attention_bias": tuple(f"midlayer.self_attn.{name}_proj.bias" for name in "qkv"),
    "mlp_bias": tuple(f"midlayer.mlp.{name}_proj.bias" for name in ("gate", "up", "down")),
    "qk_norm": tuple(f"midlayer.self_attn.{name}_norm.weight" for name in "qk"),
    "own_embedding": ("embed_tokens.weight",),
}
_ROPE = ("rope_scaling", "rope_parameters")
_KNOWN = frozenset(DraftConfig.__dataclass_fields__) | {
    *_ROPE,
    *MODELOPT_FLAGS,
    *AUX_FLAGS,
    "return_hidden_post_norm",
    "target_layer_ids",
    "max_position_embeddings",
    "partial_rotary_factor",
    "hidden_act",
    "quantization_config",
    "use_sliding_window",
    "layer_types",
    "speculators_model_type",
    "transformer_layer_config",
    "eagle_config",
    "eagle3_config",
    "architectures",
    "tie_word_embeddings",
    "target_model_type",
    "speculators_config",
}


def _parts(entry: DraftFormat, values: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    parts = []
    for name in entry.nested:
        part = values.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise FormatError(f"draft config: {name} has the wrong type: expected an object, got {part!r}")
        parts.append((name, part))
    return parts


def _ignored(entry: DraftFormat, values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(set(values).union(*(part for _, part in _parts(entry, values))) - _KNOWN))


def _flatten(entry: DraftFormat, values: Mapping[str, Any], assumed: list[str]) -> dict[str, Any]:
    """Nested objects under the top level, which wins; the taps are left to `_read_taps`."""
    flat: dict[str, Any] = {}
    for name, part in _parts(entry, values):
        for key, value in part.items():
            top = values.get(key)
            if key in _KNOWN and key not in (TAPS, "architectures") and None not in (top, value) and top != value:
                assumed.append(f"{key} is {top!r} at the top of config.json, which wins over {name}'s {value!r}")
            flat[key] = value
    flat.update({key: value for key, value in values.items() if value is not None})
    return flat


def _refuse(entry: DraftFormat, flat: Mapping[str, Any]) -> None:
    """Name what would make it another network than the one here."""
    for key, wanted in entry.demands.items():
        value = flat.get(key)
        if value is not None and (value != wanted or type(value) is not type(wanted)):
            raise FormatError(f"draft config: {key}={value!r} is not supported, only {wanted!r}")
    if flat.get("hidden_act") not in (None, "silu"):
        raise FormatError(f"draft config: hidden_act={flat['hidden_act']!r} is not supported, only 'silu'")
    if flat.get("quantization_config"):
        raise FormatError("draft config: quantised heads (quantization_config) are not supported: use the bf16 file")
    if flat.get("use_sliding_window") or "sliding_attention" in str(flat.get("layer_types")):
        raise FormatError("draft config: heads with sliding-window attention are not supported")


def _read_taps(
    entry: DraftFormat, values: Mapping[str, Any], flat: dict[str, Any], assumed: list[str], doubtful: list[str]
) -> None:
    """Put the taps into `flat` as `hidden_states` indices.

    At the top of config.json they are such indices. DeepSpec counts outputs of layers. Inside `eagle_config` files do
    either: they count outputs if they begin with 1 (SGLang's rule).
    """
    nested = next((part[TAPS] for _, part in _parts(entry, values) if part.get(TAPS) not in (None, [])), None)
    top = values.get(TAPS)
    flat.pop(TAPS, None)
    outputs = values.get(entry.output_taps) if entry.output_taps else None
    if top not in (None, []):
        flat[TAPS] = top
        if isinstance(top, list) and top[0] == 1:
            doubtful.append(TAPS)
            assumed.append(f"taps {top} are hidden_states indices, although they begin with 1 like outputs of layers")
    elif outputs is not None:
        flat[TAPS] = _next(entry.output_taps or "", outputs)
    elif nested is not None:
        doubtful.append(TAPS)
        shifted = _next(TAPS, nested)
        flat[TAPS] = shifted if shifted[0] == 2 else nested
        kind = "outputs of layers, because they begin with 1" if shifted[0] == 2 else "hidden_states indices"
        assumed.append(f"taps {nested} count {kind}: {flat[TAPS]} in hidden_states")
    else:
        doubtful.append(TAPS)
        assumed.append("taps are not stated: EAGLE-3's 2, N // 2, N - 3 of a target of N layers")
    stated = flat.get("num_aux_hidden_states")
    count = len(flat[TAPS]) if isinstance(flat.get(TAPS), list) else 3
    if stated not in (None, count):
        raise FormatError(f"draft config: num_aux_hidden_states={stated!r} contradicts its {count} taps")


def _next(name: str, layers: Any) -> list[int]:
    if not isinstance(layers, list) or not layers or any(type(layer) is not int for layer in layers):
        raise FormatError(f"draft config: {name} has the wrong type: expected a list of layers, got {layers!r}")
    return [layer + 1 for layer in layers]


def _fill_sizes(
    entry: DraftFormat,
    flat: dict[str, Any],
    state: Mapping[str, Tensor],
    target_hidden_size: int,
    assumed: list[str],
) -> None:
    """Read from the tensors what the config leaves out; what it states is compared with them later, but for the
    vocabulary, which is padded in one place and not in another: what counts is that the draft ids fit."""

    def rows(name: str, dims: int) -> int | None:
        tensor = state.get(name)
        return tensor.shape[0] if tensor is not None and tensor.dim() == dims else None

    def fill(key: str, value: int | None) -> None:
        if key not in flat and value:
            flat[key] = value
            assumed.append(f"{key} is not stated: {value}, from the tensors")

    fill("hidden_size", rows("norm.weight", 1))
    fill("intermediate_size", rows("midlayer.mlp.gate_proj.weight", 2))
    own, marks = rows("embed_tokens.weight", 2), rows("t2d", 1)
    fill("vocab_size", own or marks)
    stated = flat.get("vocab_size")
    if type(stated) is int and (known := own or max(stated, marks or 0)) != stated:  # padded differently
        flat["vocab_size"] = known
        assumed.append(f"vocab_size is {stated} in config.json and {known} in the tensors, which count")
    fill("draft_vocab_size", rows("lm_head.weight", 2))
    taps, fc, size = flat.get(TAPS), state.get("fc.weight"), flat.get("hidden_size")
    count = len(taps) if isinstance(taps, list) else 3
    own_size = fc is not None and type(size) is int and fc.shape[1:] == (count * size,)
    flat.setdefault("target_hidden_size", size if own_size else target_hidden_size)
    queries, keys = rows("midlayer.self_attn.q_proj.weight", 2), rows("midlayer.self_attn.k_proj.weight", 2)
    head_dim = flat.get("head_dim")
    if "num_attention_heads" not in entry.defaults and type(head_dim) is int and head_dim > 0:
        fill("num_attention_heads", None if queries is None else queries // head_dim)
    heads = flat.get("num_attention_heads", entry.defaults.get("num_attention_heads"))
    if type(heads) is int and heads > 0 and queries is not None and queries % heads == 0:
        fill("head_dim", queries // heads)
    head_dim = flat.get("head_dim")
    if type(head_dim) is int and head_dim > 0 and keys is not None and keys % head_dim == 0:
        fill("num_key_value_heads", keys // head_dim)
