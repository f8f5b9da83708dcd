"""Rotary frequencies of a draft head: EAGLE-3's plain ones, and the stretched ones of later trainers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from radar.draft.config import DraftConfig
from radar.draft.scaling import RopeScaling

__all__ = ["attention_factor", "inverse_frequencies"]


def inverse_frequencies(config: DraftConfig, device: torch.device) -> Tensor:
    """theta^(-2i / head_dim), stretched as `config.rope_scaling` says: [head_dim / 2], float32."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    plain = torch.pow(config.rope_theta, -exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    return _llama3(plain, scaling) if scaling.rope_type == "llama3" else _yarn(plain, scaling, config)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by: 1 but for yarn (arXiv 2309.00071, equation 22)."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones are kept, a ramp lies between them."""
    length, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert None not in (length, low, high), "RopeScaling checks this"
    turns = length * plain / (2 * math.pi)  # type: ignore[operator]  # in the original context
    kept = (turns - low) / (high - low)  # type: ignore[operator]
    kept = kept.clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: Tensor, scaling: RopeScaling, config: DraftConfig) -> Tensor:
    """NTK by parts (arXiv 2309.00071, section 3.2): a ramp over dimensions between beta_fast and beta_slow turns."""
    length = scaling.original_max_position_embeddings
    assert length is not None, "RopeScaling checks this"

    def dimension(turns: float) -> float:
        """The dimension that turns that often in the original context."""
        wave = length / (turns * 2 * math.pi)
        return config.head_dim * math.log(wave) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high = high if high != low else high + 0.001  # a step, without a division by zero
    ramp = torch.arange(config.head_dim // 2, dtype=torch.float32, device=plain.device)
    stretched = ((ramp - low) / (high - low)).clamp(0, 1)
    return stretched * plain / scaling.factor + (1 - stretched) * plain
