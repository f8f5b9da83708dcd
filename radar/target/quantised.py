"""Targets that a library has quantised: which are known, and in which of them a row of a forward hears of the others.

A quantised module stays as its library made it. Where weights alone are rounded, a text is that of `generate`; how
inputs are rounded is what `radar.target.scales` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from radar.errors import UsageError
from radar.target.layers import is_plain_linear
from radar.target.scales import is_of, roundings

__all__ = [
    "KINDS", "Kind", "check_packages", "check_quantised", "describe", "kind_of", "outside_of_graphs", "settle", "unify",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One `quant_method` of a config.

    Attributes:
        title: what messages call it.
        packages: that transformers loads it with, as pip and Python name them.
    """

    title: str
    packages: tuple[tuple[str, str], ...] = ()


def _by(title: str, *packages: tuple[str, str]) -> Kind:
    return Kind(title=title, packages=(("accelerate", "accelerate"), *packages))


KINDS: dict[str, Kind] = {
    "torchao": _by("torchao", ("torchao", "torchao")),
    "bitsandbytes": _by("bitsandbytes", ("bitsandbytes", "bitsandbytes")),
    "compressed-tensors": _by("compressed-tensors", ("compressed-tensors", "compressed_tensors")),
    "fp8": _by("fp8 in blocks"),
    "fbgemm_fp8": _by("fbgemm's fp8", ("fbgemm-gpu", "fbgemm_gpu")),
    "gptq": _by("GPTQ", ("optimum", "optimum"), ("gptqmodel", "gptqmodel")),
    "awq": _by("AWQ", ("gptqmodel", "gptqmodel")),
    "mxfp4": _by("mxfp4"),
    "gguf": _by("GGUF"),
    "hqq": _by("HQQ", ("hqq", "hqq")),
    "eetq": _by("EETQ", ("kernels", "kernels")),
}
"""By `quant_method`: radar/target/README.md says what each promises."""


def kind_of(config: Any) -> Kind | None:
    """How a model of this config is quantised; None: it says nothing of it.

    Raises:
        UsageError: for a method that is not in `KINDS`.
    """
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    known: dict[str, Any] = found if isinstance(found, dict) else vars(found)
    method = known.get("quant_method")
    if method is None and (known.get("load_in_4bit") or known.get("load_in_8bit")):
        method = "bitsandbytes"
    method = str(getattr(method, "value", method))
    if method not in KINDS:
        raise UsageError(
            f"the target is quantised by {method!r}, of which it is not known whether rows of a forward stay apart; "
            f"known: {', '.join(KINDS)}"
        )
    return KINDS[method]


def check_packages(kind: Kind) -> None:
    """Raise UsageError for packages that are missing to load such a model."""
    missing = [name for name, module in kind.packages if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"a target quantised by {kind.title} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def check_quantised(model: Any) -> None:
    """Raise UsageError for a model whose method is unknown, or where a scale is of all rows of a forward."""
    kind_of(model.config)
    for name, module, rounding in roundings(model):
        if rounding.by == "all":
            raise UsageError(
                f"the target's {name}, a {type(module).__name__}, {rounding.what}, so that nodes of a tree would "
                f"change each other's scores: {rounding.advice}"
            )


def describe(model: Any) -> str | None:
    """How a model that `check_quantised` lets pass is quantised, and what its texts are then; None: it is not."""
    kind = kind_of(model.config)
    if kind is None and not any(is_of(parameter, "torchao") for parameter in model.parameters()):
        return None
    title = "torchao" if kind is None else kind.title
    if next(roundings(model), None) is not None:
        return f"{title}, inputs too, row by row: a text may part from generate's where two tokens nearly tie"
    if all(map(is_plain_linear, (part for part in model.modules() if isinstance(part, nn.Linear)))):
        return f"{title}, unpacked: decoded as any other model"
    return f"{title}, weights alone: in float32 a text is generate's, in 16 bits it may part"


def outside_of_graphs(model: nn.Module) -> str | None:
    """The first of a stock model's quantised modules that a CUDA graph may not hold, as a noun; None: there is none."""
    found = (f"{name}, whose inputs are quantised" for name, _, rounding in roundings(model) if rounding.asks_host)
    return next(found, None)


def unify(model: Any) -> None:
    """Give experts that transformers has unpacked the model's dtype: 5.17 makes them bfloat16 beside any other, and
    its own `generate` then fails on a GPU."""
    for part in model.modules():
        weight = getattr(part, "down_proj", None) if hasattr(part, "has_gate") else None
        if isinstance(weight, nn.Parameter) and weight.is_floating_point():
            part.to(model.dtype)


def settle(model: Any) -> None:
    """Let the libraries do what they leave to the first forward (unpack weights, say), so that it is done before
    anything stands on the modules as they are.

    Raises:
        UsageError: where a forward of one token fails.
    """
    if kind_of(model.config) is None:
        return
    try:
        with torch.inference_mode(False), torch.no_grad():  # what is made now may be trained later
            model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UsageError(
            "the quantised target cannot make a forward: its config and weights are not of one model, or it was "
            "quantised for another dtype (leave dtype= out), or its library has no kernel for "
            f"{model.device.type} ({type(error).__name__}: {error})"
        ) from error
