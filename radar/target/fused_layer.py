"""Decoder layers as a GPU runs them best: seven kernels and four products, in place of stock modules one by one.

A layer's last addition and the norm that the next layer begins with are one kernel, so each layer leaves the normed
rows to the next, beside the hidden states that it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radar.target.attention import attend_stored
from radar.target.families import FAMILIES
from radar.target.layers import (
    FusedLinears,
    LayerProducts,
    is_plain_linear,
    is_plain_tensor,
    is_stock,
    is_untouched,
    layer_products,
)
from radar.target.positions import MOVING
from radar.target.running import Owner, current_cache, is_running
from radar_kernels import HeadNorms, Parts, add_rms_norm, rms_norm, rotary_angles, rotate_store, silu_mul
from radar_kernels.rms_norm import MOST_COLUMNS

__all__ = ["FusedLayers"]

_FAMILIES = {family.module: family for family in FAMILIES.values() if family.layers}
_ROTARY = {family.module: family for family in FAMILIES.values() if family.layers or family.angles}
_ACTIVATIONS = {("torch.nn.modules.activation", "SiLU"), ("transformers.activations", "SiLUActivation")}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass
class _Normed:
    """What one layer leaves to the next: hidden states and their norm, inside of a forward alone."""

    hidden: Tensor | None = None
    norm: Any = None
    normed: Tensor | None = None

    def leave(self, hidden: Tensor | None, norm: Any, normed: Tensor | None) -> None:
        self.hidden, self.norm, self.normed = hidden, norm, normed

    def take(self, hidden: Tensor, norm: Any) -> Tensor:
        """What `norm` makes of these hidden states: what was left, once, if it is just that."""
        normed = self.normed if hidden is self.hidden and norm is self.norm else None
        self.leave(None, None, None)
        return rms_norm(hidden, norm.weight, norm.variance_epsilon) if normed is None else normed


class FusedLayers:
    """A decoder's layers, last norm and rotary angles in the threads that run `owner`; entered before its `groups` are.

    Only layers of families whose row says so, with nothing on them or in them that stock ones do not have: a hook, an
    adapter, a forward of its own, weights that are not plain. All others run as they are, between ours too.

    Args:
        decoder: a model without its output layer.
        groups: of its projections (`fuse_projections`); a layer that has any other is left alone.
        owner: who runs it.
    """

    def __init__(self, decoder: Any, groups: Sequence[FusedLinears], owner: Owner) -> None:
        self._layers = [(layer, layer_products(layer, groups)) for layer in decoder.layers]
        self._last: Any = decoder.norm
        self._rotary: Any = getattr(decoder, "rotary_emb", None)
        self._owner = owner
        self._normed = _Normed()
        self._entered: list[nn.Module] = []

    def enter(self) -> None:
        if torch.nn.modules.module._has_any_global_hook():
            return
        ours = [products if _is_stock_layer(layer) else None for layer, products in self._layers]
        norms = [layer.input_layernorm if own else None for (layer, _), own in zip(self._layers, ours, strict=True)]
        home = type(self._last).__module__
        last = self._last if home in _FAMILIES and _is_stock_norm(self._last, home) else None
        if last is not None and last.weight.dtype != self._layers[-1][0].input_layernorm.weight.dtype:
            last = None  # widened for the output, say
        norms.append(last)
        for index, products in enumerate(ours):
            if products is not None:
                layer = self._layers[index][0]
                self._set(layer, self._layer_forward(layer, products, norms[index + 1]))
        if norms[-1] is not None:
            self._set(self._last, self._norm_forward(self._last))
        if _is_stock_rotary(self._rotary):
            self._set(self._rotary, self._rotary_forward(self._rotary))

    def leave(self) -> None:
        for module in self._entered:
            module.__dict__.pop("forward", None)
        self._entered.clear()
        self._normed.leave(None, None, None)

    def _set(self, module: nn.Module, forward: Callable[..., object]) -> None:
        self._entered.append(module)
        module.__dict__["forward"] = forward

    def _layer_forward(self, layer: Any, products: LayerProducts, following: Any) -> Callable[..., Tensor]:
        stock = type(layer).forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or not is_running(self._owner):
                return stock(layer, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
            normed = self._normed.take(hidden_states, layer.input_layernorm)
            attended = _attended(layer.self_attn, products, normed, **kwargs)
            hidden, normed = _add_norm(hidden_states, attended, layer.post_attention_layernorm)
            gate, up = products.gate_up.product(normed)
            change = products.down.parts(silu_mul(gate, up))
            if following is None:
                return hidden + (change.added() if isinstance(change, Parts) else change)
            hidden, normed = _add_norm(hidden, change, following)
            self._normed.leave(hidden, following, normed)
            return hidden

        return forward

    def _norm_forward(self, norm: Any) -> Callable[[Tensor], Tensor]:
        stock = type(norm).forward

        def forward(hidden_states: Tensor) -> Tensor:
            if not is_running(self._owner):
                return stock(norm, hidden_states)  # type: ignore[no-any-return]
            return self._normed.take(hidden_states, norm)

        return forward

    def _rotary_forward(self, rotary: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        stock = type(rotary).forward
        # of a type that moves those that a text as short as ours has, whatever another forward has left
        name = "original_inv_freq" if rotary.rope_type in MOVING else "inv_freq"

        def forward(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            if not is_running(self._owner):
                return stock(rotary, x, position_ids)  # type: ignore[no-any-return]
            return rotary_angles(position_ids, getattr(rotary, name).to(x.device), rotary.attention_scaling, x.dtype)

        return forward


def _attended(
    attention: Any, products: LayerProducts, x: Tensor, *, position_embeddings: tuple[Tensor, Tensor],
    radar_start: Tensor, radar_seen: Any, **_: Any,
) -> Tensor | Parts:  # fmt: skip
    """Attention of normed rows [B, N, hidden], behind its output product."""
    cache, index = current_cache(), attention.layer_idx
    norms = None
    if hasattr(attention, "q_norm"):
        norms = HeadNorms(attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon)
    query, key, value = products.qkv.product(x)
    cos, sin = position_embeddings
    inputs = (query, key, value, cos, sin, cache.keys[index], cache.values[index], radar_start)
    query = rotate_store(*inputs, norms=norms, block_table=cache.block_table)
    needs = _FAMILIES[type(attention).__module__].needs(attention)
    out = attend_stored(query, radar_seen, index, attention.scaling, needs)
    return products.o.parts(out.flatten(2))


def _add_norm(x: Tensor, change: Tensor | Parts, norm: Any) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, change, norm.weight, norm.variance_epsilon)


def _is_stock_layer(layer: Any) -> bool:
    home = type(layer).__module__
    family = _FAMILIES.get(home)
    if family is None or not is_stock(layer, home, f"{family.prefix}DecoderLayer"):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if not (is_stock(attention, home, f"{family.prefix}Attention") and is_stock(mlp, home, f"{family.prefix}MLP")):
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if hasattr(attention, "q_norm"):
        norms += [attention.q_norm, attention.k_norm]
        if attention.q_norm.variance_epsilon != attention.k_norm.variance_epsilon:
            return False
    linears = [getattr(attention, name) for name in _ATTENTION] + [getattr(mlp, name) for name in _MLP]
    activation = mlp.act_fn
    return (
        all(_is_stock_norm(norm, home) for norm in norms)
        and all(map(is_plain_linear, linears))
        and len({part.weight.dtype for part in (*norms, *linears)}) == 1
        and attention.head_dim % 2 == 0
        and (type(activation).__module__, type(activation).__name__) in _ACTIVATIONS
        and is_untouched(activation)
    )


def _is_stock_norm(norm: Any, home: str) -> bool:
    return (
        is_stock(norm, home, f"{_FAMILIES[home].prefix}RMSNorm")
        and is_plain_tensor(norm.weight)
        and len(norm.weight) <= MOST_COLUMNS
    )


def _is_stock_rotary(rotary: Any) -> bool:
    """Whether its angles are of a position and frequencies alone: `check_target` sees to it that those stay."""
    home = type(rotary).__module__
    if home not in _ROTARY or not is_stock(rotary, home, f"{_ROTARY[home].prefix}RotaryEmbedding"):
        return False
    found = rotary.inv_freq, rotary.original_inv_freq
    return all(is_plain_tensor(x) and x.dtype == torch.float32 for x in found)
