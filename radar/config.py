"""What a tree and a draft head look like: frozen dataclasses, checked at construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DraftConfig", "TreeConfig"]


def _check_int(owner: str, name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be an integer from {low} to {high}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """Size of the draft tree (EAGLE-2 section 4, EAGLE-3; the defaults are EAGLE-3's, except `max_calls`).

    Attributes:
        total_tokens: nodes that the target verifies in one forward, the root included.
        tree_top_k: beam width: nodes expanded per draft call, and children proposed for each of them.
        max_calls: upper bound of draft calls per round, whatever the policy says. EAGLE-3's depth 7 is 8 calls.
    """

    total_tokens: int = 60
    tree_top_k: int = 10
    max_calls: int = 16

    def __post_init__(self) -> None:
        _check_int("TreeConfig", "total_tokens", self.total_tokens, 2, 256)
        _check_int("TreeConfig", "tree_top_k", self.tree_top_k, 1, 16)
        _check_int("TreeConfig", "max_calls", self.max_calls, 1, 16)

    @property
    def num_candidates(self) -> int:
        """Nodes that `max_calls` draft calls can propose: k from the root, then k for each of k beam nodes."""
        return self.tree_top_k + (self.max_calls - 1) * self.tree_top_k**2

    @property
    def num_draft_columns(self) -> int:
        """Beam nodes whose keys and values the draft's cache holds at most: k for every call after the first."""
        return (self.max_calls - 1) * self.tree_top_k

    @property
    def max_accepted(self) -> int:
        """Tokens that one round can add at most: one for each level, and the target's own."""
        return self.max_calls + 1


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """Geometry of an EAGLE-3 draft head, under the names of the released `config.json` files.

    `target_hidden_size` times `num_aux_hidden_states` is what `fc` reads. `eagle_aux_hidden_state_layer_ids` names the
    target's taps as `hidden_states` indices (0: embeddings, i: output of layer i - 1); None means EAGLE-3's
    (2, N // 2, N - 3). `rope_theta` belongs to the draft: files that do not name it mean 10,000, whatever their target
    uses.
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

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
            _check_int("DraftConfig", name, getattr(self, name), 1, 2**20)
        _check_int("DraftConfig", "vocab_size", self.vocab_size, 1, 2**24)
        _check_int("DraftConfig", "draft_vocab_size", self.draft_vocab_size, 1, self.vocab_size)
        _check_int("DraftConfig", "target_hidden_size", self.target_hidden_size, 1, 2**20)
        _check_int("DraftConfig", "num_aux_hidden_states", self.num_aux_hidden_states, 1, 16)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"DraftConfig: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        taps = self.eagle_aux_hidden_state_layer_ids
        if taps is not None and len(taps) != self.num_aux_hidden_states:
            raise ValueError(
                f"DraftConfig: eagle_aux_hidden_state_layer_ids {list(taps)} must name "
                f"num_aux_hidden_states={self.num_aux_hidden_states} layers"
            )
        if self.head_dim % 2:
            raise ValueError(f"DraftConfig: head_dim must be even for rotary embeddings, got {self.head_dim}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DraftConfig:
        """Read a released head's `config.json`. Raises ValueError that names the key that is missing or wrong."""
        required = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        missing = [key for key in required if key not in values]
        if missing:
            raise ValueError(
                f"draft config: missing {', '.join(missing)}; found {', '.join(sorted(values)) or 'nothing'}"
            )
        try:
            hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
            rope = values.get("rope_parameters") or {}
            taps = values.get("eagle_aux_hidden_state_layer_ids")
            return cls(
                hidden_size=hidden,
                intermediate_size=int(values["intermediate_size"]),
                num_attention_heads=heads,
                num_key_value_heads=int(values.get("num_key_value_heads") or heads),
                head_dim=int(values.get("head_dim") or hidden // heads),
                vocab_size=int(values["vocab_size"]),
                draft_vocab_size=int(values.get("draft_vocab_size") or values["vocab_size"]),
                target_hidden_size=int(values.get("target_hidden_size") or hidden),
                num_aux_hidden_states=3 if taps is None else len(taps),
                eagle_aux_hidden_state_layer_ids=None if taps is None else tuple(int(layer) for layer in taps),
                rms_norm_eps=float(values.get("rms_norm_eps", 1e-5)),
                rope_theta=float(values.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            )
        except (TypeError, AttributeError, ZeroDivisionError) as error:
            raise ValueError(f"draft config: a value has the wrong type or is zero ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """The flat `config.json` of SafeAILab's released heads; taps are written only if they are named."""
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
        }
