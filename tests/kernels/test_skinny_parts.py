"""skinny_parts: what it leaves is what skinny_linear adds up, to the bit."""

import pytest
import torch
from test_skinny_linear import make, on_cpu, op

from radar_kernels import Parts, add_rms_norm, quantize_rows, skinny_linear, skinny_parts


@pytest.fixture(params=[1, 3])
def parts(request, monkeypatch, device):
    """On a Hopper card, or by the emulator."""
    if device.type == "cpu":
        monkeypatch.setattr(op, "architecture", lambda _: 90)
        monkeypatch.setattr(op.Plan, "launch", on_cpu(op.Plan.launch))
    elif torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("plain kernels make no parts")
    monkeypatch.setattr(op, "choose_blocks", lambda **_: op.Blocks(64, 128, 4, 100_000, parts=request.param))
    return request.param


@pytest.mark.parametrize("eight", [False, True], ids=["16 bits", "8 bits"])
def test_the_norm_behind_adds_up_the_same(eight, parts, device):
    x, weight, bias = make(10, 100, 640, device=device)
    scale = None
    if eight:
        weight, scale = quantize_rows(weight)
    x, residual, norm = x[None], torch.randn(1, 10, 100, device=device).half(), torch.ones(100, device=device).half()
    found = skinny_parts(x, weight, bias, scale=scale, backend="triton")
    whole = skinny_linear(x, weight, bias, scale=scale, backend="triton")
    if parts == 1:
        assert torch.equal(found, whole)
        return
    assert isinstance(found, Parts)
    assert found.values.shape == (parts, 1, 10, 100)
    torch.testing.assert_close(found.added(), whole, atol=1e-3, rtol=1e-3)
    summed = add_rms_norm(residual, found, norm, 1e-5, backend="triton")
    expected = add_rms_norm(residual, whole, norm, 1e-5, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(summed, expected, strict=True))


def test_a_cpu_leaves_nothing_to_add(device):
    x, weight, bias = make(3, 8, 32, dtype=torch.float32, device=device)
    assert torch.equal(skinny_parts(x, weight, bias, backend="torch"), skinny_linear(x, weight, bias, backend="torch"))
