"""How a quantised module rounds its inputs: each row by itself, or in a way that other rows of a forward decide.

Where others decide, nodes of a tree would change each other's scores, and no text would be the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

__all__ = ["Rounding", "is_of", "roundings"]


class Rounding(NamedTuple):
    """Of a module's inputs.

    Attributes:
        by: what decides how a row is rounded: the row, or all rows of the forward.
        what: of those that all rows decide: what the module is.
        advice: how to have rows apart.
        asks_host: the module's forward reads memory of the host, which a CUDA graph may not hold.
    """

    by: Literal["row", "all"]
    what: str = ""
    advice: str = ""
    asks_host: bool = False


def _dynamic(module: nn.Module) -> Rounding | None:
    if type(module).__module__.startswith(("torch.ao.nn.quantized.dynamic", "torch.nn.quantized.dynamic")):
        return Rounding(
            "all",
            "is quantised dynamically, by one scale of all rows",
            "quantise weights alone, in 8 or 4 bits, or use the model as it was",
        )
    return None


def _bitsandbytes(module: nn.Module) -> Rounding | None:
    if not (type(module).__module__.startswith("bitsandbytes") and type(module).__name__ == "Linear8bitLt"):
        return None
    state: Any = module.state
    if not state.threshold:
        return Rounding("row")
    return Rounding(
        "all",
        f"is LLM.int8() with a threshold of {state.threshold}, which takes a column out of 8 bits in all rows where "
        "one row has an outlier in it",
        "load it with llm_int8_threshold=0.0 (in BitsAndBytesConfig, or in the quantization_config of config.json: the "
        "weights are the same), or in 4 bits",
    )


_ROWS = "quantise it with granularity=PerRow(), or weights alone"


def _torchao(module: nn.Module) -> Rounding | None:
    found = None
    if type(module).__module__.startswith(("torchao.float8", "torchao.quantization.qat")):
        return Rounding(
            "all",
            f"is torchao's {type(module).__name__}, made to train, which may round its inputs by one scale of all rows",
            "convert the model to the quantised one that it was trained for, or use it as it was",
        )
    for weight in module._parameters.values():
        if weight is None or not is_of(weight, "torchao"):
            continue
        rounds = getattr(weight, "input_quant_func", None)  # of releases before 0.18
        name = getattr(rounds, "__name__", "")
        if rounds is not None and ("per_token" not in name or "noop" in name):
            return Rounding("all", f"rounds its inputs by {name or rounds}, not each row by itself", _ROWS)
        how = getattr(weight, "act_quant_kwargs", None)
        if how is None:  # another class of its own says it thus
            found = Rounding("row") if rounds or getattr(weight, "activation_quantization", None) else found
            continue
        granularity = type(getattr(how, "granularity", None)).__name__
        is_given = any(getattr(weight, name, None) is not None for name in ("act_quant_scale", "act_per_tensor_scale"))
        if not is_given and (granularity == "PerTensor" or getattr(how, "use_dynamic_per_tensor_scale", False)):
            return Rounding(
                "all",
                f"has {type(weight).__name__} weights whose inputs are quantised by one scale of all rows",
                _ROWS,
            )
        found = Rounding("row")
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
    return Rounding("row", asks_host=True) if any(end is not None for end in ends) else None


def _fp8(module: nn.Module) -> Rounding | None:
    is_fp8 = type(module).__name__ in ("FP8Linear", "FP8Experts", "FbgemmFp8Linear", "CompressedTensorsFP8Linear")
    return Rounding("row") if is_fp8 else None


def _gguf(module: nn.Module) -> Rounding | None:
    if not type(module).__module__.startswith("transformers.integrations.gguf"):
        return None
    return Rounding(
        "all",
        "keeps the blocks of its GGUF file, and rounds its inputs where they are few rows, not where they are many",
        "load it with quantization_config=GgufConfig(dequantize=True)",
    )


_ROUNDINGS: tuple[Callable[[nn.Module], Rounding | None], ...] = (
    _dynamic, _bitsandbytes, _torchao, _compressed, _fp8, _gguf,
)  # fmt: skip


def roundings(model: nn.Module) -> Iterator[tuple[str, nn.Module, Rounding]]:
    """Of all modules whose inputs are rounded, with their names."""
    for name, module in model.named_modules():
        for rounding in filter(None, (of(module) for of in _ROUNDINGS)):
            yield name, module, rounding


def is_of(tensor: Tensor, package: str) -> bool:
    """Whether it is of a class that a package has."""
    return type(tensor).__module__.partition(".")[0] == package
