"""PEFT adapters: which of them decode, and whether those that a model's layers apply are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

from torch import nn

from radar.errors import UsageError

__all__ = ["ActiveAdapters", "adapter_state", "check_adapters", "outside_of_graphs"]

_ELSEWHERE = {
    "XLORA": "weighs its adapters by the whole prompt, in a forward of its own",
    "POLY": "asks for a task id with every forward",
    "ADAPTION_PROMPT": "attends to virtual tokens in an attention of its own",
    "SHADOW": "runs a second model beside this one",
}
_CAPTURED = {"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "LN_TUNING"}  # products and sums on the device, nothing else


def check_adapters(configs: Mapping[str, Any]) -> None:
    """Raise UsageError for an adapter that changes texts by anything but the weights of the model's own layers.

    Args:
        configs: PEFT's, by the adapters' names.
    """
    for name, config in configs.items():
        if config.is_prompt_learning:
            raise UsageError(
                f"adapter {name!r} is prompt tuning, whose virtual tokens have no ids for a draft to follow: decode "
                "without RADAR, or use an adapter that changes weights (LoRA and its kin)"
            )
        kind = _kind(config)
        why = _ELSEWHERE.get(kind)
        if getattr(config, "alora_invocation_tokens", None):
            kind, why = "an activated LoRA", "begins to count where PEFT finds its tokens in the prompt"
        if why:
            raise UsageError(
                f"adapter {name!r} is {kind}, which {why}: decode without RADAR, or use an adapter that changes the "
                "weights for all tokens alike (LoRA and its kin)"
            )


def outside_of_graphs(model: nn.Module) -> str | None:
    """The first of a stock model's adapters whose layers a CUDA graph may not hold, as a noun; None: there is none."""
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "trainable_token_indices", None):
            return f"adapter {name!r}, which has tokens of its own (trainable_token_indices)"
        if _kind(config) not in _CAPTURED:
            return f"adapter {name!r} of kind {_kind(config)}"
    return None


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def adapter_state(part: nn.Module) -> tuple[Any, ...] | None:
    """Which adapters one module of a model applies, and how; None: it cannot hold any."""
    own = part.__dict__
    if "_disable_adapters" not in own and "merged_adapters" not in own:
        return None
    active = own.get("_active_adapter", ())
    names = (active,) if isinstance(active, str) else tuple(active)
    scaling = own.get("scaling")
    scales = tuple(map(scaling.get, names)) if isinstance(scaling, dict) else scaling
    return names, own.get("_disable_adapters"), tuple(own.get("merged_adapters", ())), scales


class ActiveAdapters:
    """The adapters that a model's modules apply when this is made. It keeps no module alive.

    Args:
        model: a stock one, with adapters in it or without.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = ref(model)
        self._configs = model.__dict__.get("peft_config")  # PEFT's; its older releases leave it when adapters go
        parts = () if self._configs is None else model.modules()
        found = ((ref(part), adapter_state(part)) for part in parts)
        self._parts = [(part, state) for part, state in found if state is not None]

    def check(self) -> None:
        """Raise UsageError if other ones are applied by now: switched, scaled, merged, taken off, or the first put on.

        It asks every module that can hold adapters; of a model without any, nothing.
        """
        now = ((here(), state) for here, state in self._parts)
        if getattr(self._model(), "peft_config", None) is not self._configs or any(
            part is None or adapter_state(part) != state for part, state in now
        ):
            raise UsageError(
                "the target's adapters were switched, scaled, merged or taken off while this text was decoded, and "
                "what its caches hold is of the ones before: end or close texts first, then switch; ask for it again"
            )
