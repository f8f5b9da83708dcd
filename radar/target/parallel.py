"""A model that transformers has split over ranks (`tp_plan`), as plain modules of this rank's part.

transformers holds its parameters as distributed tensors and hangs forwards on the modules that it splits. What a rank
has of them is an ordinary model with fewer heads and narrower layers, whose kernels and graphs are those of one card.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from radar.errors import UsageError
from radar.target.families import check_shared
from radar.target.ranks import Ranks, join_ranks, ranks_of
from radar.target.running import is_attending
from radar.target.split import GatheredLinear, SummedLinear, local_linear

__all__ = ["check_split", "localize", "make_local"]

_SPLIT = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "columns of the MLP",
    "vocab_size": "ids of the vocabulary",
}
_PLAIN, _GATHERED, _SUMMED = ("colwise",), ("colwise_gather_output", "colwise_rep"), ("rowwise",)


def check_split(config: Any, size: int) -> None:
    """Raise UsageError for a model that so many ranks cannot share, or not evenly."""
    check_shared(config)
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
    localize(model, ranks, lambda parameter, dim: _own(parameter, whole=dim is None))
    for name, part in model.named_parameters():
        if _is_distributed(part):
            raise UsageError(
                f'{name} is distributed and not by the model\'s tp_plan: load it with tp_plan="auto" alone'
            )
    return model


def localize(model: Any, ranks: Ranks, part: Callable[[nn.Parameter, int | None], Tensor]) -> None:
    """Put plain modules of a rank's part where the model's plan splits it.

    Args:
        model: a supported one; its modules are replaced.
        ranks: that hold the parts.
        part: what this rank has of a parameter, split along a dimension; None: all of it.

    The model's own forward is refused from then on.

    Raises:
        UsageError: for what cannot be split evenly, or in another way than by rows and columns of linear layers.
    """
    check_split(model.config, ranks.size)
    plan: dict[str, str] = model.tp_plan
    whole: dict[int, nn.Parameter] = {}  # by the parameter that was, which layers may share
    # embeddings first: an output layer may be tied to one
    places = sorted(model.named_modules(), key=lambda item: not isinstance(item[1], nn.Embedding))
    for name, module in places:
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style is None:
            continue
        module.__dict__.pop("forward", None)
        if type(module) is nn.Embedding:
            weight: Any = module.weight  # torch's annotations call parameters tensors
            whole[id(weight)] = module.weight = _like(weight, part(weight, None))
        elif type(module) is nn.Linear and style in (*_PLAIN, *_GATHERED, *_SUMMED):
            _replace(model, name, _local(name, module, style, ranks, part, whole))
        elif any(map(_is_distributed, module.parameters())):
            raise UsageError(
                f"{name}, a {type(module).__name__}, is split as {style!r}, which is not supported: use a model whose "
                "plan splits linear layers by rows and columns"
            )
    ranks.keep(model)
    model.get_decoder().register_forward_pre_hook(_refuse_alone)


def _refuse_alone(decoder: Any, _: Any) -> None:
    """A forward that no decoder makes would wait for ranks that do not come."""
    if not is_attending(decoder.config):
        raise UsageError(
            "this model is split over the ranks of torchrun, which make its forwards together: ask its decoder on rank "
            "0 for texts, or load the model whole, without tp_plan"
        )


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def _own(parameter: Any, *, whole: bool) -> Tensor:
    """What this rank has of a distributed parameter, or all of it, for which all ranks ask."""
    if not _is_distributed(parameter):
        if not whole:
            raise UsageError(
                f"the model's plan splits a weight {list(parameter.shape)} that is not: use no quantised one"
            )
        return parameter  # type: ignore[no-any-return]
    found: Tensor = parameter.full_tensor() if whole else parameter.to_local()
    return found


def _local(
    name: str,
    module: nn.Linear,
    style: str,
    ranks: Ranks,
    part: Callable[[nn.Parameter, int | None], Tensor],
    whole: dict[int, nn.Parameter],
) -> nn.Module:
    """What takes a linear layer's place."""
    weight: Any = module.weight
    bias: Any = module.bias
    if id(weight) in whole and style in _GATHERED:
        rows = len(whole[id(weight)]) // ranks.size
        own = whole[id(weight)].data[ranks.rank * rows : (ranks.rank + 1) * rows]
    else:
        own = part(weight, 1 if style in _SUMMED else 0)
    held = _like(weight, own)
    if style in _SUMMED:
        return SummedLinear(held, ranks, None if bias is None else _like(bias, part(bias, None)))
    if style in _PLAIN:
        return local_linear(held, None if bias is None else _like(bias, part(bias, 0)))
    if bias is not None:
        raise UsageError(f"{name} has a bias and its outputs are gathered, which is not supported")
    return GatheredLinear(held, ranks)


def _like(parameter: nn.Parameter, data: Tensor) -> nn.Parameter:
    return nn.Parameter(data.detach().contiguous(), requires_grad=parameter.requires_grad)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.training))
