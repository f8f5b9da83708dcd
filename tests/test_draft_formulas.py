"""Every flag of a head is its formula, written out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from draft_layouts import (
    CPU,
    LLAMA3,
    attend,
    head,
    inputs,
    run,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.rope import attention_factor, inverse_frequencies
from radar.draft.scaling import RopeScaling


def norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, factor: float) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers, turned by position times frequency."""
    half = x.shape[-1] // 2
    turn = torch.polar(torch.full((6, half), factor), positions[0, :, None] * frequencies)
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), -1)


def reference(draft: Eagle3Draft) -> Tensor:
    """`run` from the tensors alone: EAGLE-3 (2503.01840, section 3.1) and the flags of its successors."""
    c, w = draft.config, draft.state_dict()
    taps, embeds, positions = inputs(c)
    if c.norm_before_fc:
        taps = norm(taps, w["input_norm.weight"])
    if c.fc_norm:
        size = c.target_hidden_size
        parts = [taps[..., i * size : (i + 1) * size] for i in range(c.num_aux_hidden_states)]
        taps = torch.cat([norm(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)], -1)

    def linear(name: str, x: Tensor) -> Tensor:
        bias = w.get(f"midlayer.{name}.bias")
        return x @ w[f"midlayer.{name}.weight"].T + (0 if bias is None else bias)

    def layer(embeds: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        normed = norm(hidden, w["midlayer.hidden_norm.weight"])
        x = torch.cat((norm(embeds, w["midlayer.input_layernorm.weight"]), normed), -1)
        query, key, value = [
            linear(f"self_attn.{name}_proj", x).view(2, 6, -1, c.head_dim).transpose(1, 2) for name in "qkv"
        ]
        if c.qk_norm:
            query = norm(query, w["midlayer.self_attn.q_norm.weight"])
            key = norm(key, w["midlayer.self_attn.k_norm.weight"])
        factor = attention_factor(c.rope_scaling)
        frequencies = inverse_frequencies(c, CPU)
        out = attend(*[rotate(t, positions, frequencies, factor) for t in (query, key)], value)
        residual = normed if c.norm_before_residual else hidden
        hidden = residual + linear("self_attn.o_proj", out.reshape(2, 6, -1))
        x = norm(hidden, w["midlayer.post_attention_layernorm.weight"])
        return hidden + linear("mlp.down_proj", F.silu(linear("mlp.gate_proj", x)) * linear("mlp.up_proj", x))

    first = layer(embeds, taps @ w["fc.weight"].T, positions)
    fed = norm(first, w["norm.weight"]) if c.norm_output else first
    second = layer(embeds.flip(1), fed, positions + 1)
    return torch.cat([norm(h, w["norm.weight"]) @ w["lm_head.weight"].T for h in (first, second)])


YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
FLAGS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_output": True},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"qk_norm": True},
    {"head_dim": 16},
    {"target_hidden_size": 48, "own_embedding": True},
    {"rope_theta": 100.0},
    {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": YARN},
]


@pytest.mark.parametrize("changes", FLAGS)
def test_every_flag_is_its_formula(changes: dict[str, Any]) -> None:
    draft = head(**changes)
    torch.testing.assert_close(run(draft), reference(draft), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("changes", [item for item in FLAGS if item])
def test_every_flag_changes_the_result(changes: dict[str, Any]) -> None:
    """Otherwise the formulas above would prove nothing: the same tensors without the flag give other logits."""
    draft = head(**changes)
    if "target_hidden_size" in changes or "head_dim" in changes:
        assert draft.fc.weight.shape != head().fc.weight.shape or draft.midlayer.self_attn.q_proj.weight.shape[0] == 64
        return
    plain = Eagle3Draft(replace(draft.config, **{name: getattr(head().config, name) for name in changes}))
    plain.load_state_dict(draft.state_dict(), strict=False)
    assert not torch.allclose(run(draft), run(plain), atol=1e-2)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 16.0},
        {
            "rope_type": "yarn",
            "factor": 64.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
    ],
)
def test_frequencies_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    theirs = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=65536,
        rope_parameters={**parameters, "rope_theta": 50000.0},
    )
    if parameters["rope_type"] == "default":
        frequencies, factor = 50000.0 ** -(torch.arange(0, 128, 2) / 128), 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, CPU)
    scaling = RopeScaling.from_dict(parameters)
    config = replace(head().config, head_dim=128, rope_theta=50000.0, rope_scaling=scaling)
    torch.testing.assert_close(inverse_frequencies(config, CPU), frequencies, rtol=1e-5, atol=0)
    assert attention_factor(scaling) == pytest.approx(factor)
    assert DraftConfig.from_dict(config.to_dict()) == config
