"""RMS norms as our kernel, one by one, in families whose layers run as they are: each row is summed in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from radar.target.families import family_of
from radar.target.layers import is_plain_tensor, is_stock
from radar.target.running import Owner, is_running
from radar_kernels import rms_norm
from radar_kernels.rms_norm import MOST_COLUMNS

__all__ = ["FusedNorms"]


class FusedNorms:
    """A model's norms in the threads that run `owner`: PyTorch's sums go in an order that the number of rows decides.

    Only norms of the family with nothing on them; of a family whose layers run as ours (`FusedLayers`) none.

    Args:
        model: of a supported family.
        owner: who runs it.
    """

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        family = family_of(model)
        self._home, self._name, self._form = family.module, f"{family.prefix}RMSNorm", family.norm
        found = [] if family.layers else model.modules()
        self._norms = [norm for norm in found if type(norm).__name__ == self._name]
        self._owner = owner
        self._entered: list[nn.Module] = []

    def enter(self) -> None:
        if torch.nn.modules.module._has_any_global_hook():
            return
        for norm in self._norms:
            weight: Any = getattr(norm, "weight", None)  # values of Gemma 4 have a norm without
            if weight is None or not is_stock(norm, self._home, self._name):
                continue
            if is_plain_tensor(weight) and len(weight) <= MOST_COLUMNS:
                self._entered.append(norm)
                norm.__dict__["forward"] = self._forward(norm)

    def leave(self) -> None:
        for norm in self._entered:
            norm.__dict__.pop("forward", None)
        self._entered.clear()

    def _forward(self, norm: Any) -> Callable[[Tensor], Tensor]:
        stock, form = type(norm).forward, self._form
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

        def forward(x: Tensor) -> Tensor:
            if not is_running(self._owner) or x.dtype != norm.weight.dtype:
                return stock(norm, x)  # type: ignore[no-any-return]
            return rms_norm(x, norm.weight, eps, form=form)

        return forward
