"""The layouts in which EAGLE-3 heads are published: one row a format, and how a row is recognised.

To add a format, add a `DraftFormat` to `FORMATS` and a writer for it to `tests/draft_layouts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from radar.errors import FormatError

__all__ = [
    "AUX_FLAGS",
    "FORMATS",
    "MODELOPT_FLAGS",
    "DraftFormat",
    "canonical_names",
    "has_architecture",
    "recognise",
    "short_name",
]

_WRAPPERS = ("model.", "draft_model.", "eagle_module.")


@dataclass(frozen=True)
class DraftFormat:
    """What sets one trainer's files apart.

    Attributes:
        name: as in the report.
        matches: whether a config and tensor names (wrappers stripped) are of this format; asked in order of `FORMATS`.
        nested: objects of `config.json` whose keys count as if they stood at its top.
        output_taps: a key that names taps as outputs of layers (0: the first layer), one less than `hidden_states`.
        aliases: the format's names for fields of `DraftConfig`.
        defaults: values that the trainer's config class leaves out of the file.
        demands: flags that may be absent, or this; with other values it is another network.
        must_state: fields that change the numerics and that readers default differently.
        doubtful: fields that files of this format are known to misstate when they are true.
        max_extra_fc_rows: outputs of `fc` beyond the hidden size that drafting does not need.
    """

    name: str
    matches: Callable[[Mapping[str, Any], frozenset[str]], bool]
    nested: tuple[str, ...] = ()
    output_taps: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    demands: Mapping[str, Any] = field(default_factory=dict)
    must_state: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    max_extra_fc_rows: int = 0


def has_architecture(config: Mapping[str, Any], part: str) -> bool:
    return part in str(config.get("architectures"))


def _has_layer(names: frozenset[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


MODELOPT_FLAGS = {
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "parallel_draft_step": 1,
}
AUX_FLAGS = {"use_aux_hidden_state": True}  # ModelOpt's too, but SpecForge's configs copy it


def _modelopt(config: Mapping[str, Any], names: frozenset[str]) -> bool:
    eagle = config.get("eagle_config")
    keys = config.keys() | (eagle.keys() if isinstance(eagle, Mapping) else set())
    return bool(keys & MODELOPT_FLAGS.keys()) or _has_layer(names, "layers.0.")


FORMATS = (
    DraftFormat(
        "speculators",
        lambda config, names: bool(
            config.keys() & {"speculators_model_type", "speculators_config", "transformer_layer_config"}
        ),
        nested=("transformer_layer_config",),
        # the nested object leaves out what equals transformers' LlamaConfig
        defaults={"num_attention_heads": 32, "rms_norm_eps": 1e-6},
        demands={"speculators_model_type": "eagle3"},
        must_state=("norm_before_residual",),
    ),
    DraftFormat(
        "DeepSpec",
        lambda config, names: "target_layer_ids" in config or has_architecture(config, "Qwen3Eagle3Model"),
        output_taps="target_layer_ids",
    ),
    DraftFormat(
        "ModelOpt",
        _modelopt,
        nested=("eagle_config",),
        aliases={"return_hidden_post_norm": "norm_output"},
        demands=MODELOPT_FLAGS | AUX_FLAGS,
    ),
    DraftFormat(
        "SpecForge",
        lambda config, names: (
            bool(config.keys() & {"eagle_config", "eagle3_config", "fc_norm", "norm_output"})
            or _has_layer(names, "fc_norm.")
        ),
        nested=("eagle_config", "eagle3_config"),
        demands=AUX_FLAGS,
        doubtful=("norm_output",),
    ),
    DraftFormat(
        "AngelSlim",
        lambda config, names: "target_model_type" in config or has_architecture(config, "Eagle3LlamaForCausalLM"),
        max_extra_fc_rows=3,  # SpecExit's signals: confidence, progress, remaining length
    ),
    DraftFormat("SafeAILab", lambda config, names: _has_layer(names, "midlayer.")),
)


def canonical_names(names: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the file -> name in `Eagle3Draft`, for the tensors that belong to a head.

    Wrappers are stripped and `layers.0.` becomes `midlayer.`; rotary buffers and copies of the target's weights
    (`verifier_*`) are left out. Raises FormatError if two tensors get one name.
    """
    canonical: dict[str, str] = {}
    for name in sorted(names):
        short = short_name(name)
        if short.endswith("rotary_emb.inv_freq") or short.startswith("verifier_"):
            continue
        if short.startswith("layers.0."):
            short = "midlayer." + short.removeprefix("layers.0.")
        if short in canonical.values():
            raise FormatError(f"two tensors of the draft head mean {short}; one of them is {name}")
        canonical[name] = short
    return canonical


def short_name(name: str) -> str:
    """A tensor's name without the wrappers of its trainer."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def recognise(config: Mapping[str, Any], names: Mapping[str, Tensor]) -> DraftFormat:
    """The first format that the contents match. Raises FormatError if none does."""
    short = frozenset(short_name(name) for name in names)
    if _has_layer(short, "midlayer.") or _has_layer(short, "layers.0."):
        for entry in FORMATS:
            if entry.matches(config, short):
                return entry
    shown = ", ".join(sorted(names)[:4]) or "no tensors"
    raise FormatError(
        f"this is no EAGLE-3 head of a known format ({', '.join(entry.name for entry in FORMATS)}): expected tensors "
        f"named midlayer.* or layers.0.*, found {shown}"
    )
