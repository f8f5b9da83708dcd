"""The model types that decode, a row each: what their attention needs, and what of them kernels of ours stand in for.

No modelling code is copied: stock modules run, with our attention in the place that transformers has for one, and with
the experts that transformers picks (`experts_implementation`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from radar.target.needs import Needs

__all__ = ["FAMILIES", "MISSING", "Family", "cache_heads", "decoder_of", "family_of", "layer_needs"]


def _own_window(attention: Any) -> int | None:
    return attention.sliding_window  # type: ignore[no-any-return]


def _one_window(attention: Any) -> int | None:
    return getattr(attention.config, "sliding_window", None)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model type.

    Attributes:
        home: of its classes, in `transformers.models`.
        prefix: of their names.
        window: of an attention module, in tokens; None: the family has none.
        softcap: whether attention modules say `attn_logit_softcapping` and it counts.
        sinks: whether attention modules have `sinks`.
        layers: whether its whole layers run as ours on a GPU (`FusedLayers`), and may be split over cards.
        angles: whether its rotary embedding is Llama's, for which ours stands in there without the layers.
        norm: how its RMS norms round (`radar_kernels.rms_norm`), for those that run as ours by themselves.
        sums_elsewhere: what sums in modules of transformers, in an order that the number of rows may have a part in,
            so that in 16 bits a GPU may break near ties otherwise in a tree than in plain decoding; None: nothing.
        limit: of a config, the most tokens of a text, and why; None: what the config says.
    """

    home: str
    prefix: str
    window: Callable[[Any], int | None] | None = None
    softcap: bool = False
    sinks: bool = False
    layers: bool = False
    angles: bool = False
    norm: Literal["rounded", "wide", "shifted"] = "rounded"
    sums_elsewhere: str | None = None
    limit: Callable[[Any], tuple[int, str] | None] | None = None

    @property
    def module(self) -> str:
        """Where its classes are."""
        return f"transformers.models.{self.home}.modeling_{self.home}"

    def needs(self, attention: Any) -> Needs:
        """Of an attention module: what its forward hands to an attention function."""
        return Needs(
            window=None if self.window is None else self.window(attention),
            softcap=attention.config.attn_logit_softcapping if self.softcap else None,
            sink=attention.sinks if self.sinks else None,
        )


def _llama4_limit(config: Any) -> tuple[int, str] | None:
    """Of Llama 4: attention in chunks, and queries that are scaled by a place which it takes from its own cache."""
    limits = []
    if "chunked_attention" in (config.layer_types or ()):
        limits.append((int(config.attention_chunk_size), "its attention ends at borders of chunks from there on"))
    if config.attn_temperature_tuning and not all(config.no_rope_layers):
        limits.append((int(config.floor_scale) - 1, "it scales queries by their place from there on"))
    return min(limits, default=None)


_EXPERTS = "experts, by grouped products"

FAMILIES: dict[str, Family] = {
    "llama": Family(home="llama", prefix="Llama", layers=True),
    "mistral": Family(home="mistral", prefix="Mistral", layers=True, window=_one_window),
    "qwen2": Family(home="qwen2", prefix="Qwen2", layers=True, window=_own_window),
    "qwen3": Family(home="qwen3", prefix="Qwen3", layers=True, window=_own_window),
    "ministral": Family(home="ministral", prefix="Ministral", layers=True, window=_own_window),
    "ministral3": Family(home="ministral3", prefix="Ministral3", window=_one_window),
    "qwen3_moe": Family(home="qwen3_moe", prefix="Qwen3Moe", window=_own_window, sums_elsewhere=_EXPERTS),
    "gpt_oss": Family(
        home="gpt_oss", prefix="GptOss", window=_own_window, sinks=True, norm="wide", sums_elsewhere=_EXPERTS
    ),
    "gemma2": Family(home="gemma2", prefix="Gemma2", window=_own_window, softcap=True, norm="shifted"),
    "gemma3_text": Family(home="gemma3", prefix="Gemma3", window=_own_window, norm="shifted"),
    "gemma4_text": Family(
        home="gemma4",
        prefix="Gemma4",
        window=_own_window,
        norm="wide",
        sums_elsewhere="norms of values, projections of layers that share keys, and experts, by grouped products",
    ),
    "phi3": Family(home="phi3", prefix="Phi3", window=_one_window, angles=True),
    "smollm3": Family(home="smollm3", prefix="SmolLM3", window=_own_window),
    "olmo2": Family(home="olmo2", prefix="Olmo2", norm="wide"),
    "granite": Family(home="granite", prefix="Granite"),
    "glm": Family(home="glm", prefix="Glm"),
    "glm4": Family(home="glm4", prefix="Glm4"),
    "llama4_text": Family(
        home="llama4", prefix="Llama4Text", sums_elsewhere=f"{_EXPERTS}, and norms of heads", limit=_llama4_limit
    ),
}
"""By `config.model_type`."""

_VISION = "it reads images too; its language model alone decodes, as {}"
_RECURRENT = "it keeps a state in place of keys and values, which a tree cannot branch"
_UNTESTED = "its modules are like those of families that decode, but nothing has tested it"
_LATENT = "its values are narrower than its keys, and the cache has one width for both"

MISSING: dict[str, str] = {
    "gemma": _UNTESTED,
    "gemma3": _VISION.format("Gemma3ForCausalLM"),
    "gemma3n": "layers that share keys and values, and states beside the residual stream",
    "gemma4": _VISION.format("Gemma4ForCausalLM"),
    "glm4_moe": _UNTESTED,
    "llama4": _VISION.format("Llama4ForCausalLM"),
    "mistral3": _VISION.format("Ministral3ForCausalLM or MistralForCausalLM"),
    "mixtral": _UNTESTED,
    "olmo3": _UNTESTED,
    "qwen2_moe": _UNTESTED,
    "qwen2_vl": _VISION.format("Qwen2ForCausalLM"),
    "qwen2_5_vl": _VISION.format("Qwen2ForCausalLM"),
    "qwen3_vl": _VISION.format("Qwen3ForCausalLM"),
    "qwen3_next": _RECURRENT,
    "qwen3_5": _RECURRENT,
    "qwen3_5_text": _RECURRENT,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "jamba": _RECURRENT,
    "bamba": _RECURRENT,
    "falcon_h1": _RECURRENT,
    "granitemoehybrid": _RECURRENT,
    "recurrent_gemma": _RECURRENT,
    "rwkv": _RECURRENT,
    "lfm2": _RECURRENT,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
}
"""Types that are close, or asked for: why they are refused."""


def family_of(model: Any) -> Family:
    """The row of a model that `check_target` lets pass."""
    return FAMILIES[model.config.model_type]


def decoder_of(model: Any) -> Any:
    """The model without its output layer."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "layers") else model.model  # Llama4ForCausalLM looks in a wrong place


def cache_heads(model: Any) -> tuple[int, int]:
    """Key-value heads, and numbers of a head, that the cache has to have room for: the most of all layers."""
    config, layers = model.config, [layer.self_attn for layer in decoder_of(model).layers]
    heads = {config.num_attention_heads // layer.num_key_value_groups for layer in layers}
    return max(heads), max(layer.head_dim for layer in layers)


def layer_needs(model: Any) -> tuple[Needs, ...]:
    """What attention needs in each layer of such a model."""
    family = family_of(model)
    return tuple(family.needs(layer.self_attn) for layer in decoder_of(model).layers)
