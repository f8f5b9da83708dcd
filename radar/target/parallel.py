"""A model that transformers has split over ranks (`tp_plan`), as plain modules of this rank's part.

transformers holds its parameters as distributed tensors and hangs forwards on the modules that it splits. What a rank
has of them is an ordinary model with fewer heads and narrower layers, whose kernels and graphs are those of one card.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from radar.errors import UsageError
from radar.target.ranks import Ranks, join_ranks, ranks_of
from radar.target.split import GatheredLinear, SummedLinear, local_linear

__all__ = ["check_split", "make_local"]

_SPLIT = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "columns of the MLP",
    "vocab_size": "ids of the vocabulary",
}
_PLAIN, _GATHERED, _SUMMED = ("colwise",), ("colwise_gather_output", "colwise_rep"), ("rowwise",)


def check_split(config: Any, size: int) -> None:
    """Raise UsageError for a model that so many ranks cannot share evenly."""
    for name, what in _SPLIT.items():
        count = getattr(config, name, None)
        if count and count % size:
            raise UsageError(
                f"{count} {what} ({name}) do not divide by {size} ranks: start torchrun with a --nproc-per-node that "
                f"divides {count}"
            )


def make_local(model: Any) -> Any:
    """The model, of whose split layers this rank keeps its part, if transformers has split it; any other as it is.

    Which layer is split how is what the model's own plan says. An embedding becomes whole on every rank: a draft head
    reads it too, and no rank waits for others while it drafts.

    Raises:
        UsageError: for a plan or a mesh that is something else than tensor parallel, or splits unevenly.
    """
    split = {name: part for name, part in model.named_parameters() if _is_distributed(part)}
    if not split or ranks_of(model) is not None:
        return model
    ranks = join_ranks(model.device)
    for name, part in split.items():
        if part.device_mesh.size() != ranks.size or sum(not place.is_replicate() for place in part.placements) > 1:
            raise UsageError(
                f"{name} is distributed as {list(part.placements)} over {part.device_mesh}: what RADAR decodes is "
                f'split by tp_plan="auto" over all {ranks.size} ranks, and by nothing else'
            )
    check_split(model.config, ranks.size)
    plan: dict[str, str] = model.tp_plan
    whole: dict[int, nn.Parameter] = {}  # by the distributed parameter, which layers may share
    with torch.no_grad():
        places = sorted(model.named_modules(remove_duplicate=False), key=lambda item: isinstance(item[1], nn.Linear))
        for name, module in places:  # embeddings first: an output layer may be tied to one
            style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
            if style is not None:
                module.__dict__.pop("forward", None)
            if any(_is_distributed(part) for part in module.parameters(recurse=False)):
                _replace(model, name, _local(name, module, style, ranks, whole))
    ranks.keep(model)
    return model


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def _local(name: str, module: Any, style: str | None, ranks: Ranks, whole: dict[int, nn.Parameter]) -> nn.Module:
    """What takes the module's place."""
    weight = module.weight
    if type(module) is nn.Embedding:
        whole[id(weight)] = module.weight = _like(weight, weight.full_tensor())
        return module
    if type(module) is not nn.Linear or style not in (*_PLAIN, *_GATHERED, *_SUMMED):
        raise UsageError(
            f"{name}, a {type(module).__name__}, is split as {style!r}, which is not supported: use a model whose plan "
            "splits linear layers alone, and no quantised one"
        )
    if id(weight) in whole:
        rows = len(whole[id(weight)]) // ranks.size
        part = _like(weight, whole[id(weight)].data[ranks.rank * rows : (ranks.rank + 1) * rows])
    else:
        part = _like(weight, weight.to_local().contiguous())
    bias: Any = module.bias
    if bias is not None:
        bias = _like(bias, bias.to_local() if _is_distributed(bias) else bias.data)
    if style in _SUMMED:
        return SummedLinear(part, ranks, bias)
    if style in _GATHERED and bias is None:
        return GatheredLinear(part, ranks)
    if style in _GATHERED:
        raise UsageError(f"{name} has a bias and its outputs are gathered, which is not supported")
    return local_linear(part, bias)


def _like(parameter: nn.Parameter, data: Tensor) -> nn.Parameter:
    return nn.Parameter(data.detach(), requires_grad=parameter.requires_grad)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.training))
