"""Linear layers as a GPU reads them best: those of one input in one product, each by `skinny_linear`.

A grouped-query model projects keys and values by matrices of a few megabytes, too short to reach the card's bandwidth.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from radar.target.running import Owner, is_running
from radar.target.split import GatheredLinear, SplitLinear, SummedLinear
from radar_kernels import Parts, skinny_linear

__all__ = [
    "Fused", "FusedLinears", "LayerProducts", "Product", "fuse_projections", "fused", "is_plain_embedding",
    "is_plain_linear", "is_plain_tensor", "is_stock", "is_untouched", "layer_products",
]  # fmt: skip

_GROUPS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
_ALONE = (("self_attn", ("qkv_proj",)), ("mlp", ("gate_up_proj",)))  # that a family has in one layer each
_LINEARS = (nn.Linear, SummedLinear, GatheredLinear)


class Fused(Protocol):
    """Modules that run as ours for a time."""

    def enter(self) -> None: ...

    def leave(self) -> None: ...


@dataclass
class _Product:
    """The product under way: it holds weights and parts inside of a forward alone."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    parts: Sequence[Tensor] = ()
    sizes: list[int] = field(default_factory=list)


class FusedLinears:
    """One product for `linears`, whose parameters become parts of one storage and keep their values.

    Nothing of the weights is held here: inside `fused` the product reads what the layers hold then, and parameters that
    were moved, cast or given other values since are joined again. The first layer's forward computes all of them and
    the others hand out their part, so they have to be called in this order with the same input, as every supported
    family does. Outside, and in threads that do not run `owner`, they are ordinary layers.
    """

    def __init__(self, linears: Sequence[nn.Linear], owner: Owner) -> None:
        self.linears = tuple(linears)
        self._product = _Product(sizes=[linear.out_features for linear in linears])
        last = len(linears) - 1
        self._forwards = [
            _forward(self._product, index, index == last, partial(nn.Linear.forward, linear), owner)
            for index, linear in enumerate(linears)
        ]

    def join(self) -> None:
        """Make the parameters neighbours in one storage, unless they are."""
        for name in ("weight", "bias"):
            tensors = [getattr(linear, name) for linear in self.linears]
            if tensors[0] is None or _are_neighbours(tensors):
                continue
            # a parameter made in inference mode could never be trained again
            with torch.inference_mode(tensors[0].is_inference()), torch.no_grad():
                whole = torch.cat([tensor.data for tensor in tensors])
                for tensor, part in zip(tensors, whole.split([len(tensor) for tensor in tensors]), strict=True):
                    tensor.data = part

    def enter(self) -> None:
        self.join()
        first = self.linears[0]
        rows = sum(self._product.sizes)
        self._product.weight = first.weight.data.as_strided((rows, first.in_features), (first.in_features, 1))
        self._product.bias = None if first.bias is None else first.bias.data.as_strided((rows,), (1,))
        for linear, forward in zip(self.linears, self._forwards, strict=True):
            linear.__dict__["forward"] = forward

    def product(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of the layers makes of x [..., in_features], between `enter` and `leave`."""
        assert self._product.weight is not None
        whole: Tensor = skinny_linear(x, self._product.weight, self._product.bias)
        return torch.split(whole, self._product.sizes, dim=-1)

    def parts(self, x: Tensor) -> Tensor | Parts:
        """See `Product`."""
        return self.product(x)[0]

    def leave(self) -> None:
        for linear in self.linears:
            linear.__dict__.pop("forward", None)
        self._product.weight = self._product.bias = None
        self._product.parts = ()


class FusedSplit(FusedLinears):
    """The same of one layer that ranks share: this rank's product, and what all of them make of theirs."""

    def __init__(self, linear: SplitLinear, owner: Owner) -> None:
        super().__init__([linear], owner)
        self._linear, self._owner = linear, owner

    def enter(self) -> None:
        super().enter()
        linear = self._linear

        def forward(x: Tensor) -> Tensor:
            return self.product(x)[0] if is_running(self._owner) else type(linear).forward(linear, x)

        linear.__dict__["forward"] = forward

    def product(self, x: Tensor) -> tuple[Tensor, ...]:
        """See `FusedLinears`."""
        return (self._linear.whole(super().product(x)[0]),)

    def parts(self, x: Tensor) -> Tensor | Parts:
        """See `Product`."""
        return self._linear.parts(super().product(x)[0])


def _forward(
    product: _Product, index: int, is_last: bool, plain: Callable[[Tensor], Tensor], owner: Owner
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not is_running(owner):
            return plain(x)
        if index == 0:
            assert product.weight is not None
            product.parts = skinny_linear(x, product.weight, product.bias).split(product.sizes, dim=-1)
        part = product.parts[index]
        if is_last:
            product.parts = ()  # nothing of a forward outlives it
        return part

    return forward


def fuse_projections(layers: Iterable[Any], others: Iterable[nn.Module], owner: Owner) -> list[FusedLinears]:
    """The projections of decoder layers, and other linear layers, such as the one for the output.

    What is not a plain `nn.Linear` with plain weights (an adapter, a quantised layer, one with hooks or a forward of
    its own) is left alone.

    Args:
        layers: of a model or a draft head.
        others: each by itself.
        owner: in the threads that run it (`radar.target.running`) the layers compute together.
    """
    groups = []
    for layer in layers:
        for place, names in _GROUPS + _ALONE:
            module = getattr(layer, place, None)
            linears = [getattr(module, name, None) for name in names]
            if all(map(is_plain_linear, linears)) and _are_alike(linears):
                groups.append(_fused(linears, owner))
    groups += [_fused([other], owner) for other in others if is_plain_linear(other)]
    for group in groups:
        group.join()
    return groups


def _fused(linears: Sequence[Any], owner: Owner) -> FusedLinears:
    return FusedSplit(linears[0], owner) if isinstance(linears[0], SplitLinear) else FusedLinears(linears, owner)


class Product(Protocol):
    """Layers of one input in one product."""

    linears: tuple[nn.Linear, ...]

    def product(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of them makes of x [..., in_features]."""

    def parts(self, x: Tensor) -> Tensor | Parts:
        """Of one layer: what `product` gives, or what the `add_rms_norm` behind it is to add up."""


class LayerProducts(NamedTuple):
    """Of one decoder layer."""

    qkv: Product
    o: Product
    gate_up: Product
    down: Product


def layer_products(layer: Any, groups: Iterable[Product]) -> LayerProducts | None:
    """Those of the `groups` that are a layer's; None unless they are all of its products."""
    by_linears = {tuple(map(id, group.linears)): group for group in groups}
    found = []
    for place, names in _GROUPS:
        module = getattr(layer, place, None)
        found.append(by_linears.get(tuple(id(getattr(module, name, None)) for name in names)))
    return None if None in found else LayerProducts(*found)  # type: ignore[arg-type]


@contextmanager
def fused(groups: Sequence[Fused]) -> Iterator[None]:
    """Let the groups' modules run as ours. One thread at a time: the caller holds a lock of their owner."""
    try:
        for group in groups:
            group.enter()
        yield
    finally:
        for group in groups:
            group.leave()


def is_untouched(module: nn.Module) -> bool:
    """Whether no hook is called with the module, and its class says what it does."""
    state = module.__dict__
    return not ("forward" in state or state["_forward_hooks"] or state["_forward_pre_hooks"])


def is_stock(module: Any, home: str, name: str) -> bool:
    """Whether it is of the class `name` of the module `home`, as that has it, with nothing on it."""
    kind = type(module)
    # libraries that patch models replace a class's forward, or the class in its module
    return (kind.__module__, kind.__name__, kind.forward.__module__) == (home, name, home) and is_untouched(module)


def is_plain_linear(linear: Any) -> bool:
    """Whether it is an `nn.Linear`, or a rank's part of one, with plain weights and nothing on it."""
    return (
        type(linear) in _LINEARS
        and is_untouched(linear)
        and all(map(is_plain_tensor, (linear.weight, *(() if linear.bias is None else (linear.bias,)))))
    )


def is_plain_embedding(embedding: Any) -> bool:
    """Whether it looks rows of plain weights up and does nothing else."""
    return (
        type(embedding) is nn.Embedding
        and embedding.max_norm is None
        and is_untouched(embedding)
        and is_plain_tensor(embedding.weight)
    )


def is_plain_tensor(tensor: Tensor) -> bool:
    """Whether it is what it says: not the wrapper of a quantised or distributed tensor."""
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and tensor.is_contiguous()
    )


def _are_alike(linears: Sequence[Any]) -> bool:
    kinds = {(x.in_features, x.weight.dtype, x.weight.device, x.bias is None) for x in linears}
    return len(kinds) == 1 and len({id(x.weight) for x in linears}) == len(linears)


def _are_neighbours(tensors: Sequence[Tensor]) -> bool:
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    ends = [tensor.data_ptr() + tensor.numel() * tensor.element_size() for tensor in tensors]
    starts = [tensor.data_ptr() for tensor in tensors]
    return len(storages) == 1 and all(map(operator.eq, ends[:-1], starts[1:]))
