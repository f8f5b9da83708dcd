"""By what scale a quantised module rounds its inputs: one of each row, or one that all rows of a forward share.

Where it is of all rows, nodes of a tree would change each other's scores, and no text would be the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

__all__ = ["Rounding", "is_of", "roundings"]


class Rounding(NamedTuple):
    """Of a module's inputs: by a scale of each row, or of all; `advice` is how to have rows apart."""

    scale: Literal["row", "all"]
    what: str
    advice: str


_ADVICE = "quantise weights alone, or inputs row by row"


def _dynamic(module: nn.Module) -> Rounding | None:
    if type(module).__module__.startswith(("torch.ao.nn.quantized.dynamic", "torch.nn.quantized.dynamic")):
        return Rounding("all", "is quantised dynamically, by one scale of all its inputs", _ADVICE)
    return None


def _bitsandbytes(module: nn.Module) -> Rounding | None:
    if not (type(module).__module__.startswith("bitsandbytes") and type(module).__name__ == "Linear8bitLt"):
        return None
    state: Any = module.state
    if not state.threshold:
        return Rounding("row", "", "")
    return Rounding(
        "all",
        f"is LLM.int8() with a threshold of {state.threshold}, which takes a column out of 8 bits in all rows where one "
        "row has an outlier in it",
        "load it with llm_int8_threshold=0.0 (in BitsAndBytesConfig, or in the quantization_config of config.json: the "
        "weights are the same), or in 4 bits",
    )


def _torchao(module: nn.Module) -> Rounding | None:
    found = None
    for weight in module._parameters.values():
        if weight is None or not is_of(weight, "torchao"):
            continue
        how = getattr(weight, "act_quant_kwargs", None)
        if how is None:  # another class of its own says it thus
            found = Rounding("row", "", "") if getattr(weight, "activation_quantization", None) else found
            continue
        granularity = type(getattr(how, "granularity", None)).__name__
        is_given = any(getattr(weight, name, None) is not None for name in ("act_quant_scale", "act_per_tensor_scale"))
        if not is_given and (granularity == "PerTensor" or getattr(how, "use_dynamic_per_tensor_scale", False)):
            return Rounding(
                "all",
                f"has {type(weight).__name__} weights whose inputs are quantised by one scale of all rows",
                "quantise it with granularity=PerRow(), or weights alone",
            )
        found = Rounding("row", "", "")
    return found


def _compressed(module: nn.Module) -> Rounding | None:
    scheme = getattr(module, "quantization_scheme", None)
    ends = [getattr(scheme, name, None) for name in ("input_activations", "output_activations")]
    if any(end is not None and end.dynamic is True and end.strategy == "tensor" for end in ends):
        return Rounding(
            "all",
            "is quantised by compressed-tensors with a dynamic scale of strategy 'tensor', which is of all rows",
            "use a checkpoint whose activations have strategy 'token', static scales, or none",
        )
    return Rounding("row", "", "") if any(end is not None for end in ends) else None


def _fp8(module: nn.Module) -> Rounding | None:
    is_fp8 = type(module).__name__ in ("FP8Linear", "FP8Experts", "FbgemmFp8Linear", "CompressedTensorsFP8Linear")
    return Rounding("row", "", "") if is_fp8 else None


_ROUNDINGS: tuple[Callable[[nn.Module], Rounding | None], ...] = (
    _dynamic, _bitsandbytes, _torchao, _compressed, _fp8,
)  # fmt: skip


def roundings(model: nn.Module) -> Iterator[tuple[str, nn.Module, Rounding]]:
    """Of all modules whose inputs are rounded, with their names."""
    for name, module in model.named_modules():
        for rounding in filter(None, (of(module) for of in _ROUNDINGS)):
            yield name, module, rounding


def is_of(tensor: Tensor, package: str) -> bool:
    """Whether it is of a class that a package has."""
    return type(tensor).__module__.partition(".")[0] == package
