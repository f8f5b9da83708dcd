"""A model's linear layers as a GPU reads them best: those of one input in one product, each by `skinny_linear`.

A grouped-query model projects keys and values by matrices of a few megabytes, too short to reach the card's bandwidth.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from radar_kernels import skinny_linear

__all__ = ["FusedLinears", "fuse_projections", "fused"]

_GROUPS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


class FusedLinears:
    """One product for `linears`, whose parameters become views of one storage and keep their values.

    Inside `fused` the first layer's forward computes all of them and the others hand out their part, so they have to
    be called in this order with the same input, as every supported family does. Outside they are ordinary layers.
    One thread at a time may be inside: layers hand each other parts of a product, whoever called them.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._linears = tuple(linears)
        self._sizes = [linear.out_features for linear in linears]
        self._parts: Sequence[Tensor] = ()
        self._forwards = [self._forward_of(index) for index in range(len(linears))]
        self._share()

    def _share(self) -> None:
        if len(self._linears) == 1:
            self._weight: Tensor = self._linears[0].weight.data
            self._bias: Tensor | None = self._linears[0].bias
            return
        self._weight = torch.cat([linear.weight.data for linear in self._linears])
        biases = [linear.bias.data for linear in self._linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        start = 0
        for linear, size in zip(self._linears, self._sizes, strict=True):
            linear.weight.data = self._weight[start : start + size]
            if self._bias is not None:
                linear.bias.data = self._bias[start : start + size]
            start += size

    def _forward_of(self, index: int) -> Callable[[Tensor], Tensor]:
        last = index == len(self._linears) - 1

        def forward(x: Tensor) -> Tensor:
            if index == 0:
                self._parts = skinny_linear(x, self._weight, self._bias).split(self._sizes, dim=-1)
            part = self._parts[index]
            if last:
                self._parts = ()  # nothing of a forward outlives it
            return part

        return forward

    def enter(self) -> None:
        views = self._weight.split(self._sizes)
        if any(linear.weight.data_ptr() != view.data_ptr() for linear, view in zip(self._linears, views, strict=True)):
            self._share()  # the model was moved, cast or given other weights since
        for linear, forward in zip(self._linears, self._forwards, strict=True):
            linear.__dict__["forward"] = forward

    def leave(self) -> None:
        for linear in self._linears:
            linear.__dict__.pop("forward", None)


_known: WeakKeyDictionary[nn.Module, list[FusedLinears]] = WeakKeyDictionary()
_making = threading.Lock()


def fuse_projections(model: nn.Module, layers: Iterable[Any], head: nn.Module) -> list[FusedLinears]:
    """The projections of a model's decoder layers, and its output layer; made once for each model.

    What is not a plain `nn.Linear` (an adapter, a quantised layer, one with hooks) is left alone.
    """
    with _making:  # whoever comes meanwhile waits: half a list would leave weights that are about to move
        if model not in _known:
            groups = []
            for layer in layers:
                for owner, names in _GROUPS:
                    module = getattr(layer, owner, None)
                    linears = [getattr(module, name, None) for name in names]
                    if all(_is_plain(linear) for linear in linears) and _are_alike(linears):
                        groups.append(FusedLinears(linears))  # type: ignore[arg-type]
            if _is_plain(head):
                groups.append(FusedLinears([head]))  # type: ignore[list-item]
            _known[model] = groups
        return _known[model]


@contextmanager
def fused(groups: Sequence[FusedLinears]) -> Iterator[None]:
    """Let the groups' layers compute together. The caller holds a lock of their model: see `FusedLinears`."""
    try:
        for group in groups:
            group.enter()
        yield
    finally:
        for group in groups:
            group.leave()


def _is_plain(linear: Any) -> bool:
    return (
        type(linear) is nn.Linear
        and "forward" not in linear.__dict__
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _are_alike(linears: Sequence[Any]) -> bool:
    kinds = {(x.in_features, x.weight.dtype, x.weight.device, x.bias is None) for x in linears}
    return len(kinds) == 1
