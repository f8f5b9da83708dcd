"""rms_norm and add_rms_norm: the kernel against float64 and stock modules, and a row's bits beside any others."""

import pytest
import torch
from tolerances import assert_close
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from radar_kernels import Parts, add_rms_norm, reference_layer, rms_norm

SHAPES = [(1, 64), (3, 96), (2, 5, 33), (17, 128), (1, 1, 5120), (2, 1)]


def make(shape, dtype, device):
    """Rows in the middle of wider ones that hold NaN, and weights."""
    wide = torch.full((*shape[:-1], shape[-1] + 32), float("nan"), device=device, dtype=dtype)
    x = wide[..., 16:-16]
    x.copy_(3 * torch.randn(shape, device=device))
    return x, torch.randn(shape[-1], device=device).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_reference(shape, kernel_dtype, device):
    (x, weight), (residual, _) = make(shape, kernel_dtype, device), make(shape, kernel_dtype, device)
    exact = reference_layer.rms_norm(x.float(), weight.float(), 1e-5)
    found = rms_norm(x, weight, 1e-5, backend="triton")
    assert (found.dtype, found.is_contiguous()) == (kernel_dtype, True)
    assert_close(found, exact, "rms_norm", kernel_dtype)
    total, normed = add_rms_norm(residual, x, weight, 1e-5, backend="triton")
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, rms_norm(total, weight, 1e-5, backend="triton"))


@pytest.mark.parametrize("module", [LlamaRMSNorm, Qwen3RMSNorm])
def test_reference_is_the_stock_module(module, kernel_dtype, device):
    x, weight = make((7, 96), kernel_dtype, device)
    stock = module(96, eps=1e-6).to(device, kernel_dtype)
    stock.weight.data.copy_(weight)
    assert torch.equal(rms_norm(x, weight, 1e-6, backend="torch"), stock(x))


@pytest.mark.parametrize(
    ("module", "form"), [(GptOssRMSNorm, "wide"), (Olmo2RMSNorm, "wide"), (Gemma2RMSNorm, "shifted")]
)
def test_forms_are_those_of_stock_modules(module, form, kernel_dtype, device):
    """Not rounded before the weight, which Gemma keeps without its 1."""
    x, weight = make((17, 96), kernel_dtype, device)
    stock = module(96, eps=1e-6).to(device, kernel_dtype)
    stock.weight.data.copy_(weight)
    expected = stock(x)
    assert torch.equal(rms_norm(x, weight, 1e-6, form=form, backend="torch"), expected)
    found = rms_norm(x, weight, 1e-6, form=form, backend="triton")
    assert_close(found, expected.float(), "rms_norm", kernel_dtype)
    if kernel_dtype == torch.float16:
        assert (found != expected).float().mean() < 0.01


def test_an_unknown_form_is_refused(device):
    with pytest.raises(ValueError, match=r"form must be one of rounded, wide, shifted, got 'narrow'"):
        rms_norm(torch.ones(3, 8, device=device), torch.ones(8, device=device), 1e-6, form="narrow")


def test_values_are_rounded_where_stock_rounds_them(device):
    """Norm and weight are each a step: a product of both before rounding has other bits in a third of the places."""
    x, weight = make((17, 128), torch.float16, device)
    found = rms_norm(x, weight, 1e-5, backend="triton")
    expected = reference_layer.rms_norm(x, weight, 1e-5)
    assert (found != expected).float().mean() < 0.01  # where the mean, summed in another order, rounds otherwise
    wide = x.float()
    at_once = (weight.float() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).half()
    assert (found != at_once).float().mean() > 0.1


@pytest.mark.parametrize("rows", [1, 15, 16])
def test_a_row_has_the_same_bits_beside_any_others(rows, kernel_dtype, device):
    (x, weight), (residual, _) = make((17, 1000), kernel_dtype, device), make((17, 1000), kernel_dtype, device)
    everyone = add_rms_norm(residual, x, weight, 1e-5, backend="triton")
    for first in {0, 17 - rows}:
        some = slice(first, first + rows)
        found = add_rms_norm(residual[some], x[some], weight, 1e-5, backend="triton")
        assert all(torch.equal(a, b[some]) for a, b in zip(found, everyone, strict=True))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_part_of_wider_rows_takes_the_result(backend, device):
    x, weight = make((1, 5, 64), torch.float32, device)
    wide = torch.full((1, 5, 128), 7.0, device=device)
    assert rms_norm(x, weight, 1e-5, out=wide[..., 64:], backend=backend).data_ptr() == wide[..., 64:].data_ptr()
    assert torch.equal(wide[..., 64:], rms_norm(x, weight, 1e-5, backend=backend))
    assert bool((wide[..., :64] == 7).all())


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_last_row_that_counts_alone(backend, kernel_dtype, device):
    (x, weight), (residual, _) = make((3, 5, 64), kernel_dtype, device), make((3, 5, 64), kernel_dtype, device)
    count = torch.tensor([1, 5, 3], device=device)
    everyone = add_rms_norm(residual, x, weight, 1e-5, backend=backend)
    places = torch.full((2, 3, 2, 64), 7.0, device=device, dtype=kernel_dtype)
    total, out = places[:, :, :1]
    found = add_rms_norm(residual, x, weight, 1e-5, count=count, total=total, out=out, backend=backend)
    for new, place, each in zip(found, (total, out), everyone, strict=True):
        assert new.data_ptr() == place.data_ptr()
        assert torch.equal(new[:, 0], each[torch.arange(3), count - 1])
    assert bool((places[:, :, 1] == 7).all())
    fresh = add_rms_norm(residual, x, weight, 1e-5, count=count, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(fresh, found, strict=True))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("given", ["scale and bias", "scale", "bias", "neither"])
def test_a_product_that_is_still_in_parts(given, parts, kernel_dtype, device):
    """Added up as by `sum_kernel`: float32 in this order, scale, bias, one rounding; then added to the residual."""
    residual, weight = make((3, 5, 96), kernel_dtype, device)
    scale, bias = torch.randn(96, device=device), torch.randn(96, device=device).to(kernel_dtype)
    values = torch.randn(parts, 3, 5, 96, device=device)
    x = Parts(values, scale if "scale" in given else None, bias if "bias" in given else None, kernel_dtype)
    whole = values[0]
    for part in values[1:]:
        whole = whole + part
    whole = whole * scale if "scale" in given else whole
    whole = (whole + bias.float() if "bias" in given else whole).to(kernel_dtype)
    for count in (None, torch.tensor([1, 5, 3], device=device)):
        expected = add_rms_norm(residual, whole, weight, 1e-5, count=count, backend="triton")
        found = add_rms_norm(residual, x, weight, 1e-5, count=count, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        found = add_rms_norm(residual, x, weight, 1e-5, count=count, backend="torch")
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_that_is_no_number_spoils_no_other(value, device):
    x, weight = make((3, 64), torch.float32, device)
    x[1] = value
    found = rms_norm(x, weight, 1e-5, backend="triton")
    assert bool(found[[0, 2]].isfinite().all())
    torch.testing.assert_close(found[1], reference_layer.rms_norm(x, weight, 1e-5)[1], equal_nan=True)


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_layer, "rms_norm", lambda *_: "norm")
    monkeypatch.setattr(reference_layer, "add_rms_norm", lambda *_, **__: ("sum", "norm"))
    x, weight = torch.ones(2, 8), torch.ones(8)
    assert rms_norm(x, weight, 1e-5) == "norm"
    assert add_rms_norm(x, x, weight, 1e-5) == ("sum", "norm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(9)}, r"x must be \[..., K\] and weight \[K\]"),
        ({"weight": torch.ones(8).half()}, "one float dtype"),
        ({"x": torch.ones(2, 8).long()}, "one float dtype"),
        ({"out": torch.ones(3, 8)}, r"out must be torch.float32 \[2, 8\]"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {"x": torch.ones(2, 8), "weight": torch.ones(8), "eps": 1e-5}
    rms_norm(**inputs)
    with pytest.raises(ValueError, match=message):
        rms_norm(**inputs | change)
    with pytest.raises(ValueError, match="residual must be"):
        add_rms_norm(torch.ones(8), **inputs)
    with pytest.raises(ValueError, match=r"x must be \[B, N, K\] and count int64"):
        add_rms_norm(torch.ones(2, 8), **inputs, count=torch.ones(2).long())
    with pytest.raises(ValueError, match=r"total must be torch.float32 \[2, 8\]"):
        add_rms_norm(torch.ones(2, 8), **inputs, total=torch.ones(8))


def test_no_rows(device):
    x, weight = torch.ones(0, 8, device=device), torch.ones(8, device=device)
    assert [len(one) for one in add_rms_norm(x, x, weight, 1e-5, backend="triton")] == [0, 0]
