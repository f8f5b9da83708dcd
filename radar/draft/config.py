"""What a draft head looks like: frozen dataclasses, checked at construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from radar.config import check_int
from radar.errors import UsageError

__all__ = ["DraftConfig", "RopeScaling"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a head stretches its rotary frequencies; `radar.draft.rope` has the formulas.

    Names and defaults are those of transformers' `rope_parameters`. `linear` reads `factor` alone, `llama3` also the
    frequency factors and the original length, `yarn` the betas, `truncate`, the original length and
    `attention_factor`, by which cosines and sines are multiplied (None: 0.1 ln(factor) + 1).
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        needs = {
            "linear": (),
            "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("original_max_position_embeddings",),
        }
        if self.rope_type not in needs:
            raise UsageError(f"rope type {self.rope_type!r} is not supported; supported: default, {', '.join(needs)}")
        missing = [name for name in needs[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise UsageError(f"rope type {self.rope_type} needs {', '.join(missing)}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise UsageError(f"high_freq_factor ({high}) must be larger than low_freq_factor ({low})")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], max_position_embeddings: int | None = None) -> RopeScaling | None:
        """Read `rope_scaling` or `rope_parameters`; None for the default type.

        `max_position_embeddings` stands in for yarn's original length, where it is not given. Raises ValueError for a
        type that is not supported and for keys that this reader would have to ignore.
        """
        kind = values.get("rope_type") or values.get("type") or "default"
        if not isinstance(kind, str):
            raise _wrong("rope_type", "a name", kind)
        if values.get("rope_type") and values.get("type") and values["rope_type"] != values["type"]:
            raise UsageError(f"rope_type {values['rope_type']!r} contradicts type {values['type']!r}")
        names = {field.name for field in fields(cls)} - {"rope_type"}
        unknown = sorted(values.keys() - names - _ROPE_KEYS)
        if kind == "default":
            # leftovers such as factor: 1.0 are common here and mean nothing; sections of axes are another embedding
            unknown = [name for name in unknown if "mrope" in name]
        if unknown:
            raise UsageError(f"rope keys {', '.join(unknown)} are not supported")
        if kind == "default":
            return None
        given = {name: values[name] for name in names if values.get(name) is not None}
        read: dict[str, Any] = {
            name: _flag(given, name, True)
            if name == "truncate"
            else (_integer(given, name) if name == "original_max_position_embeddings" else _positive(given, name))
            for name in given
        }
        if "factor" not in read:
            raise UsageError(f"rope type {kind} needs factor")
        if kind == "yarn":
            read.setdefault("original_max_position_embeddings", max_position_embeddings)
            if "attention_factor" not in read and values.get("mscale") and values.get("mscale_all_dim"):
                scales = [
                    0.1 * _positive(values, name) * math.log(max(read["factor"], 1.0)) + 1
                    for name in ("mscale", "mscale_all_dim")
                ]
                read["attention_factor"] = scales[0] / scales[1]
        return cls(rope_type=kind, **read)

    def to_dict(self) -> dict[str, Any]:
        """As `rope_scaling` in a `config.json`; values that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_ROPE_KEYS = {"rope_type", "type", "rope_theta", "mscale", "mscale_all_dim"}
_FLAGS = (
    "norm_before_residual",
    "norm_output",
    "norm_before_fc",
    "fc_norm",
    "attention_bias",
    "mlp_bias",
    "qk_norm",
    "own_embedding",
)


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """Geometry of an EAGLE-3 draft head, under the names of the released `config.json` files.

    Attributes:
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim: of the head's one layer.
        vocab_size, draft_vocab_size: ids of the target, and those that the head can propose.
        target_hidden_size: times `num_aux_hidden_states`, what `fc` reads.
        eagle_aux_hidden_state_layer_ids: the target's taps as `hidden_states` indices (0: embeddings, i: output of
            layer i - 1); None means EAGLE-3's (2, N // 2, N - 3).
        rope_theta: the draft's own: files that do not name it mean 10,000, whatever their target uses.
        rope_scaling: likewise the draft's own.
        norm_before_residual: the layer's residual is the normed feature, not the feature.
        norm_output: the next level is fed with the normed output (EAGLE-3.1), not the output.
        norm_before_fc: one norm over all taps side by side before `fc`.
        fc_norm: one norm for each tap before `fc` (EAGLE-3.1).
        attention_bias, mlp_bias: the projections have biases.
        qk_norm: queries and keys are normed for each head before the rotation, as in Qwen3.
        own_embedding: the head has an embedding [vocab_size, hidden_size] instead of sharing the target's.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    num_aux_hidden_states: int = 3
    eagle_aux_hidden_state_layer_ids: tuple[int, ...] | None = None
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_before_residual: bool = False
    norm_output: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    own_embedding: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
            check_int("DraftConfig", name, getattr(self, name), 1, 2**20)
        check_int("DraftConfig", "vocab_size", self.vocab_size, 1, 2**24)
        check_int("DraftConfig", "draft_vocab_size", self.draft_vocab_size, 1, self.vocab_size)
        check_int("DraftConfig", "target_hidden_size", self.target_hidden_size, 1, 2**20)
        check_int("DraftConfig", "num_aux_hidden_states", self.num_aux_hidden_states, 1, 16)
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"DraftConfig: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        taps = self.eagle_aux_hidden_state_layer_ids
        if taps is not None and len(taps) != self.num_aux_hidden_states:
            raise UsageError(
                f"DraftConfig: eagle_aux_hidden_state_layer_ids {list(taps)} must name "
                f"num_aux_hidden_states={self.num_aux_hidden_states} layers"
            )
        if self.head_dim % 2:
            raise UsageError(f"DraftConfig: head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.norm_before_fc and self.fc_norm:
            raise UsageError("DraftConfig: norm_before_fc and fc_norm are two ways to norm the taps: set one of them")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DraftConfig:
        """Read a head's flat `config.json`. Raises ValueError that names the key that is missing or wrong."""
        required = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        missing = [key for key in required if values.get(key) is None]
        if missing:
            raise UsageError(
                f"draft config: missing {', '.join(missing)}; found {', '.join(sorted(values)) or 'nothing'}"
            )
        hidden, heads = _integer(values, "hidden_size"), _integer(values, "num_attention_heads")
        taps = _indices(values, "eagle_aux_hidden_state_layer_ids")
        theta, scaling = _rope(values)
        return cls(
            hidden_size=hidden,
            intermediate_size=_integer(values, "intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(values, "num_key_value_heads", heads),
            head_dim=_integer(values, "head_dim", hidden // max(heads, 1)),
            vocab_size=_integer(values, "vocab_size"),
            draft_vocab_size=_integer(values, "draft_vocab_size", _integer(values, "vocab_size")),
            target_hidden_size=_integer(values, "target_hidden_size", hidden),
            num_aux_hidden_states=3 if taps is None else len(taps),
            eagle_aux_hidden_state_layer_ids=taps,
            rms_norm_eps=_positive(values, "rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            **{name: _flag(values, name, False) for name in _FLAGS},
        )

    def to_dict(self) -> dict[str, Any]:
        """The flat `config.json` of SafeAILab's released heads; what they do not have is written where it is used."""
        taps = self.eagle_aux_hidden_state_layer_ids
        return {
            **({} if taps is None else {"eagle_aux_hidden_state_layer_ids": list(taps)}),
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "num_hidden_layers": 1,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_hidden_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            **({} if self.rope_scaling is None else {"rope_scaling": self.rope_scaling.to_dict()}),
            **{name: True for name in _FLAGS if getattr(self, name)},
        }


def _wrong(name: str, expected: str, value: object) -> UsageError:
    return UsageError(f"draft config: {name} has the wrong type or value: expected {expected}, got {value!r}")


def _integer(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "an integer", value)
    return value


def _positive(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = values.get(name)
    value = default if value is None else value
    # a JSON integer may be too long for a float, so the range is compared before the conversion
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _wrong(name, "a positive number", value)
    return float(value)


def _flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _indices(values: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise _wrong(name, "a list of layer indices", value)
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**20 for item in value):
        raise _wrong(name, "layer indices of 0 or more", value)
    return tuple(value)


def _rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_theta`, `rope_scaling` (older files) and `rope_parameters` (newer ones)."""
    merged: dict[str, Any] = {}
    thetas = [] if values.get("rope_theta") is None else [_positive(values, "rope_theta")]
    for name in ("rope_scaling", "rope_parameters"):
        part = values.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise _wrong(name, "an object", part)
        if part.get("rope_theta") is not None:
            thetas.append(_positive(part, "rope_theta"))
        clash = [key for key in part if key != "rope_theta" and key in merged and merged[key] != part[key]]
        if clash:
            raise UsageError(f"draft config: rope_scaling and rope_parameters differ in {', '.join(clash)}: keep one")
        merged.update(part)
    if len(set(thetas)) > 1:
        raise UsageError(
            f"draft config: rope_theta is stated more than once, as {' and '.join(map(str, thetas))}: keep one"
        )
    limit = values.get("max_position_embeddings")
    limit = None if limit is None else _integer(values, "max_position_embeddings")
    if merged.get("partial_rotary_factor", 1) != 1 or (values.get("partial_rotary_factor") or 1) != 1:
        raise UsageError("draft config: partial_rotary_factor is not supported: all of a head must be rotated")
    merged.pop("partial_rotary_factor", None)
    try:
        scaling = RopeScaling.from_dict(merged, limit)
    except ValueError as error:
        raise UsageError(f"draft config: {str(error).removeprefix('draft config: ')}") from None
    return (thetas[0] if thetas else 10000.0), scaling
