"""What a draft head looks like: a frozen dataclass, checked at construction."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from radar.config import check_int
from radar.draft.scaling import RopeScaling, read_rope
from radar.draft.values import read_flag, read_indices, read_integer, read_positive
from radar.errors import FormatError, UsageError

__all__ = ["DraftConfig"]

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
    def of_target(
        cls, config: Any, *, draft_vocab_size: int, intermediate_size: int | None = None, taps: int = 3
    ) -> DraftConfig:
        """A head for a target with this transformers config: its sizes, unless they are given. Where its layers have
        several, the head has plain ones."""

        def own(name: str) -> Any:
            with suppress(RuntimeError):  # transformers', of layers that differ
                return getattr(config, name, None)

        heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
        return cls(
            hidden_size=hidden,
            intermediate_size=intermediate_size or int(config.intermediate_size),
            num_attention_heads=heads,
            num_key_value_heads=int(own("num_key_value_heads") or heads),
            head_dim=int(own("head_dim") or hidden // heads),
            vocab_size=int(config.vocab_size),
            draft_vocab_size=draft_vocab_size,
            target_hidden_size=hidden,
            num_aux_hidden_states=taps,
            rms_norm_eps=float(config.rms_norm_eps),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DraftConfig:
        """Read a head's flat `config.json`. Raises FormatError that names the key that is missing or wrong."""
        required = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        missing = [key for key in required if values.get(key) is None]
        if missing:
            raise FormatError(
                f"draft config: missing {', '.join(missing)}; found {', '.join(sorted(values)) or 'nothing'}"
            )
        hidden, heads = read_integer(values, "hidden_size"), read_integer(values, "num_attention_heads")
        taps = read_indices(values, "eagle_aux_hidden_state_layer_ids")
        theta, scaling = read_rope(values)
        return cls(
            hidden_size=hidden,
            intermediate_size=read_integer(values, "intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=read_integer(values, "num_key_value_heads", heads),
            head_dim=read_integer(values, "head_dim", hidden // max(heads, 1)),
            vocab_size=read_integer(values, "vocab_size"),
            draft_vocab_size=read_integer(values, "draft_vocab_size", read_integer(values, "vocab_size")),
            target_hidden_size=read_integer(values, "target_hidden_size", hidden),
            num_aux_hidden_states=3 if taps is None else len(taps),
            eagle_aux_hidden_state_layer_ids=taps,
            rms_norm_eps=read_positive(values, "rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            **{name: read_flag(values, name, False) for name in _FLAGS},
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
