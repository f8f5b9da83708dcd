"""Experts in a captured graph, by the interface that transformers has for them.

transformers multiplies by grouped products. Those of bfloat16 ask nothing of the host; those of other types, and its
plain loop, read there how many rows an expert has, which no graph can hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from radar.target.running import is_attending

__all__ = ["experts_of"]

_EXPERTS = "radar_experts"
_ASK_THE_HOST = ("grouped_mm", "eager")
GATHERED = 2**28  # bytes of weights that are copied at a time


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts interface: rows [T, hidden], the k experts of each [T, k] and their weights [T, k]."""
    weight = module.down_proj
    if weight.dtype == torch.bfloat16:
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    # `batched_mm` copies the weights of each row's experts, those in front of the activation twice as large
    row = 3 * top_k_index.shape[1] * weight[0].numel() * weight.element_size()
    most = max(1, GATHERED // row)
    parts = zip(*(x.split(most) for x in (hidden_states, top_k_index, top_k_weights)), strict=True)
    return torch.cat([ALL_EXPERTS_FUNCTIONS["batched_mm"](module, *part) for part in parts])


ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, _experts)


def experts_of(config: Any, own: str | None) -> str | None:
    """The implementation that a config's experts use now.

    Args:
        config: of the experts.
        own: what it says itself.
    """
    if own in _ASK_THE_HOST and is_attending(config) and _is_capturing():
        return _EXPERTS
    return own


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
