"""A draft head's products with weights of 8 bits: other proposals now and then, the same text, and half of the bytes.

The target verifies in its own type, so nothing but acceptance depends on how exact a head is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from radar.errors import UsageError
from radar_kernels import Parts, quantize_rows, runs_skinny, skinny_linear, skinny_parts

__all__ = ["NarrowLinears", "check_draft_dtype", "weight_dtype"]

NARROW = torch.int8  # quicker to widen than 8-bit floats, and rounded more finely


class NarrowLinears:
    """One product for `linears` of one input, from copies of their weights in 8 bits."""

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.linears = tuple(linears)
        self._sizes = [linear.out_features for linear in linears]
        self.weight, self.scale = self._quantized(dtype)
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases).detach() if biases else None

    @torch.no_grad()
    def refill(self) -> None:
        """Take the values that the layers have now, where the copies are: graphs read them there."""
        weight, scale = self._quantized(self.weight.dtype)
        self.weight.copy_(weight)
        self.scale.copy_(scale)
        if self.bias is not None:
            self.bias.copy_(torch.cat([linear.bias for linear in self.linears]))

    def product(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of the layers makes of x [..., in_features]."""
        return torch.split(skinny_linear(x, self.weight, self.bias, scale=self.scale), self._sizes, dim=-1)

    def parts(self, x: Tensor) -> Tensor | Parts:
        """See `radar.target.layers.Product`."""
        return skinny_parts(x, self.weight, self.bias, scale=self.scale)

    @torch.no_grad()
    def _quantized(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weights, scales = zip(*(quantize_rows(linear.weight, dtype) for linear in self.linears), strict=True)
        return torch.cat(weights), torch.cat(scales)


def check_draft_dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    """`draft_dtype` as a dtype. Raises UsageError for one that no head's weights can have."""
    dtype = getattr(torch, name, name) if isinstance(name, str) else name
    known = (NARROW, torch.bfloat16, torch.float16, torch.float32)
    if dtype is not None and dtype not in known:
        names = ", ".join(f'"{str(one).removeprefix("torch.")}"' for one in known)
        raise UsageError(f"draft_dtype must be one of {names} or None, got {name!r}")
    return dtype


def weight_dtype(asked: torch.dtype | None, draft: nn.Module, *, fused: bool) -> torch.dtype:
    """What the products of a head read.

    Args:
        asked: `draft_dtype`; None: int8 where a kernel reads it, else the head's own dtype.
        draft: the head.
        fused: whether its layers run as kernels.

    Raises:
        UsageError: this head on this device cannot do what is asked for.
    """
    weights = [module.weight for module in draft.modules() if isinstance(module, nn.Linear)]
    own, able = weights[0].dtype, fused and all(map(runs_skinny, weights))
    name = str(own).removeprefix("torch.")
    if asked is None:
        return NARROW if able else own
    if asked == NARROW and not able:
        raise UsageError(
            'draft_dtype="int8" needs a Hopper GPU and a 16-bit head without hooks or modules of its own, this one is '
            f"{name} on {weights[0].device}; leave it out to take what runs here"
        )
    if asked not in (NARROW, own):
        raise UsageError(f'draft_dtype must be "int8" or the target\'s "{name}", got {asked}')
    return asked
