"""silu_mul: the kernel against float64 and its rounding, and a row's bits beside any others."""

import pytest
import torch
from tolerances import assert_close
from torch.nn import functional as F

from radar_kernels import reference_layer, silu_mul

SHAPES = [(1, 64), (3, 96), (2, 5, 33), (17, 128), (1, 2, 1500), (40, 1)]


def make(shape, dtype, device):
    """Both parts of one product [..., 2 K], as a fused projection leaves them."""
    whole = (4 * torch.randn(*shape[:-1], 2 * shape[-1], device=device)).to(dtype)
    return whole.split(shape[-1], dim=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_reference(shape, kernel_dtype, device):
    gate, up = make(shape, kernel_dtype, device)
    found = silu_mul(gate, up, backend="triton")
    assert (found.dtype, found.is_contiguous()) == (kernel_dtype, True)
    assert_close(found, F.silu(gate.float()) * up.float(), "silu_mul", kernel_dtype)


def test_silu_is_rounded_before_the_product(device):
    gate, up = make((8, 256), torch.float16, device)
    found = silu_mul(gate, up, backend="triton")
    assert (found != F.silu(gate) * up).float().mean() < 0.01
    assert (found != (F.silu(gate.float()) * up.float()).half()).float().mean() > 0.1


@pytest.mark.parametrize("rows", [1, 15, 16])
def test_a_row_has_the_same_bits_beside_any_others(rows, kernel_dtype, device):
    gate, up = make((17, 1000), kernel_dtype, device)
    everyone = silu_mul(gate, up, backend="triton")
    for first in {0, 17 - rows}:
        some = slice(first, first + rows)
        assert torch.equal(silu_mul(gate[some], up[some], backend="triton"), everyone[some])


def test_ends_of_the_scale(device):
    """silu(-inf) is NaN in PyTorch too; large negative values are zero, without an overflow on the way."""
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, float("inf"), float("nan")]], device=device)
    found = silu_mul(gate, torch.ones_like(gate), backend="triton")
    torch.testing.assert_close(found, F.silu(gate), equal_nan=True)


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_layer, "silu_mul", lambda *_: "product")
    assert silu_mul(torch.ones(2, 8), torch.ones(2, 8)) == "product"


@pytest.mark.parametrize("up", [torch.ones(2, 9), torch.ones(2, 8).half(), torch.ones(8)], ids=str)
def test_wrong_inputs_are_named(up):
    with pytest.raises(ValueError, match=r"gate and up must be \[..., K\] of one float dtype"):
        silu_mul(torch.ones(2, 8), up)


def test_no_rows(device):
    x = torch.ones(0, 8, device=device)
    assert silu_mul(x, x, backend="triton").shape == (0, 8)
