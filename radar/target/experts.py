"""Experts in a captured graph, by the interface that transformers has for them.

transformers multiplies by grouped products. Those of bfloat16 ask nothing of the host; those of other types on a GPU,
and its plain loop, read there how many rows an expert has, which no graph can hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from radar.target.layers import is_plain_tensor

__all__ = ["experts_for"]

_GATHERED = "radar_gathered"
COPIED = 2**30  # bytes of weights at a time
MOST_ROWS = 1024  # of a step that a graph may hold


def experts_for(model: nn.Module) -> str | None:
    """The implementation for a model's experts in place of one that asks the host; None: leave them what they have."""
    found = {_type(part) for part in model.modules() if hasattr(part, "has_gate")}
    if None in found or not found:
        return None
    return "grouped_mm" if found == {torch.bfloat16} else _GATHERED


def _type(experts: Any) -> torch.dtype | None:
    """Of the weights of experts on a GPU that are what they seem to be; None: others have ways of their own."""
    weight: Any = getattr(experts, "down_proj", None)
    return weight.dtype if _is_on_gpu(weight) and is_plain_tensor(weight) else None


def _is_on_gpu(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.is_cuda


def _gathered(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts interface: rows [T, hidden], the k experts of each [T, k] and their weights [T, k]."""
    weight = module.down_proj
    if len(hidden_states) > MOST_ROWS:
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    # `batched_mm` copies the weights of each row's experts, those in front of the activation twice as large
    row = 3 * top_k_index.shape[1] * weight[0].numel() * weight.element_size()
    most = max(1, COPIED // row)
    parts = zip(*(x.split(most) for x in (hidden_states, top_k_index, top_k_weights)), strict=True)
    return torch.cat([ALL_EXPERTS_FUNCTIONS["batched_mm"](module, *part) for part in parts])


ALL_EXPERTS_FUNCTIONS.register(_GATHERED, _gathered)
