"""rotary_angles: the reference against stock modules, bit for bit, and the kernel against float64."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from radar_kernels import reference_layer, rotary_angles

SCALED = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 5e5,
}  # fmt: skip


def stock(device, head_dim=64, **config):
    sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "head_dim": head_dim}
    return LlamaRotaryEmbedding(LlamaConfig(**sizes, **config)).to(device)


@pytest.mark.parametrize("config", [{}, {"rope_parameters": SCALED}], ids=["default", "yarn"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_angles_of_stock_modules(config, backend, kernel_dtype, device):
    module = stock(device, **config)
    positions = torch.randint(0, 512, (2, 7), device=device)
    got = rotary_angles(positions, module.inv_freq, module.attention_scaling, kernel_dtype, backend=backend)
    for ours, theirs in zip(got, module(torch.empty(1, device=device, dtype=kernel_dtype), positions), strict=True):
        assert ours.is_contiguous()
        if backend == "torch":
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, atol=2e-7, rtol=torch.finfo(kernel_dtype).eps)


@pytest.mark.parametrize("dim", [6, 96, 128])
def test_kernel_equals_float64_at_large_positions(dim, device):
    module = stock(device, head_dim=dim)
    positions = torch.tensor([0, 1, 8191, 131071], device=device)
    cos, sin = rotary_angles(positions, module.inv_freq, 1.5, torch.float32, backend="triton")
    angle = (positions[:, None].float() * module.inv_freq).double()
    angle = torch.cat((angle, angle), -1)
    torch.testing.assert_close(cos.double(), 1.5 * angle.cos(), atol=5e-7, rtol=0)
    torch.testing.assert_close(sin.double(), 1.5 * angle.sin(), atol=5e-7, rtol=0)


def test_a_row_has_the_same_bits_beside_any_others(device):
    frequencies, positions = stock(device).inv_freq, torch.randint(0, 9000, (17,), device=device)
    everyone = rotary_angles(positions, frequencies, 1.0, torch.float32, backend="triton")
    alone = rotary_angles(positions[5:6], frequencies, 1.0, torch.float32, backend="triton")
    assert all(torch.equal(a, b[5:6]) for a, b in zip(alone, everyone, strict=True))


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_layer, "rotary_angles", lambda *_: "reference")
    assert rotary_angles(torch.zeros(1, 2).long(), torch.ones(4), 1.0, torch.float32) == "reference"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.zeros(1, 2)}, "positions must be int64"),
        ({"frequencies": torch.ones(4).double()}, r"frequencies float32 \[D / 2\]"),
        ({"dtype": torch.float64}, "dtype must be one of"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {"positions": torch.zeros(1, 2).long(), "frequencies": torch.ones(4), "scaling": 1.0}
    with pytest.raises(ValueError, match=message):
        rotary_angles(**inputs | {"dtype": torch.float32} | change)
