"""RMS norm of rows, alone or behind the residual's addition, in one pass."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import Any, Literal

import torch
from torch import Tensor

from radar_kernels import reference_layer
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference import Parts

__all__ = ["add_rms_norm", "rms_norm"]

MOST_COLUMNS = 32768  # that a program's registers hold
Form = Literal["rounded", "wide", "shifted"]
FORMS = ("rounded", "wide", "shifted")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@jit
def norm_kernel(
    x, residual, count, factor, bias, weight, total, output, x_m, x_p, residual_m, total_m, output_m, nodes, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, PARTS: tl.constexpr,
    FACTOR: tl.constexpr, BIAS: tl.constexpr, FORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h = residual + x; output = weight * h / sqrt(mean(h^2) + eps), of one row: h and the norm are rounded.

    In the FORM "wide" the norm is not, before it is weighed, and in "shifted" neither, and the weight is 1 + weight.
    With LAST the row is the last one that counts of a sequence's `nodes`. With PARTS x is (x[0] + x[1] + ...) * factor
    + bias, rounded, as `sum_kernel` makes it.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    EARLY: tl.constexpr = BLOCK <= 8192  # registers to hold them
    if EARLY:  # weights, which the kernel in front never writes
        w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if not EARLY:
        w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    source = row
    if LAST:
        source = row * nodes + tl.load(count + row) - 1
    h = tl.load(x + source * x_m + i, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        h += tl.load(x + part * x_p + source * x_m + i, mask=inside, other=0.0).to(tl.float32)
    if FACTOR:
        h *= tl.load(factor + i, mask=inside, other=0.0)
    if BIAS:
        h += tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 1:
        h = h.to(output.dtype.element_ty).to(tl.float32)
    if ADD:
        rounded = (tl.load(residual + source * residual_m + i, mask=inside, other=0.0).to(tl.float32) + h).to(
            output.dtype.element_ty
        )
        tl.store(total + row * total_m + i, rounded, mask=inside)
        h = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, 0) / SIZE + eps)
    normed = h * scale
    if FORM == "rounded":
        normed = normed.to(output.dtype.element_ty).to(tl.float32)
    if FORM == "shifted":
        w += 1.0
    tl.store(output + row * output_m + i, (w * normed).to(output.dtype.element_ty), mask=inside)


def norm_plan(
    *, rows: int, size: int, add: bool, last: bool, parts: int = 1, factor: bool = False, bias: bool = False,
    form: Form = "rounded", arch: int,
) -> Plan:  # fmt: skip
    """A program for each row, so that a row is summed in one order beside any number of others."""
    block = next_power_of_2(size)
    return Plan(
        grid=(rows,),
        constants={
            "SIZE": size, "BLOCK": block, "ADD": add, "LAST": last, "PARTS": parts, "FACTOR": factor, "BIAS": bias,
            "FORM": form, "PDL": arch >= 90,
        },
        options={"num_warps": min(max(block // 512, 1), 32), "enable_fp_fusion": False}
        | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _launch(
    x: Tensor | Parts, residual: Tensor | None, weight: Tensor, eps: float, total: Tensor | None = None,
    out: Tensor | None = None, count: Tensor | None = None, form: Form = "rounded",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first = x.values[0] if isinstance(x, Parts) else x
    shape, size = first.shape if count is None else (first.shape[0], 1, first.shape[-1]), first.shape[-1]
    output = weight.new_empty(shape) if out is None else out
    if total is None:
        total = output if residual is None else weight.new_empty(shape)
    rows = output.numel() // size
    if rows:
        base = rows_of(first if residual is None else residual)
        sums, flat = total.view(rows, size), output.view(rows, size)
        how: dict[str, Any] = {
            "add": residual is not None,
            "last": count is not None,
            "form": form,
            "arch": architecture(weight.device),
        }
        if isinstance(x, Parts):
            x_rows, step = x.values, x.values.stride(0)
            addends = [base if one is None else one for one in (x.scale, x.bias)]
            how |= {"parts": len(x.values), "factor": x.scale is not None, "bias": x.bias is not None}
        else:
            x_rows, step, addends = rows_of(x), 0, [base, base]
        plan = norm_plan(rows=rows, size=size, **how)
        plan.launch(
            norm_kernel, x_rows, base, base if count is None else count.contiguous(), *addends, weight.contiguous(),
            sums, flat, size if isinstance(x, Parts) else x_rows.stride(0), step, base.stride(0), sums.stride(0),
            flat.stride(0), first.shape[-2] if count is not None else rows, eps,
        )  # fmt: skip
    return total, output


def rows_of(x: Tensor) -> Tensor:
    """[..., K] as [rows, K] whose rows are contiguous; a copy where strides do not allow a view."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _check(op: str, weight: Tensor, **inputs: Tensor | None) -> None:
    x = inputs["x"]
    assert x is not None
    if x.dim() < 1 or weight.shape != x.shape[-1:] or not 1 <= weight.shape[0] <= MOST_COLUMNS:
        raise ValueError(
            f"{op}: x must be [..., K] and weight [K] with K from 1 to {MOST_COLUMNS}, got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise ValueError(f"{op}: x and weight must share one float dtype, got {x.dtype} and {weight.dtype}")
    for name, tensor in inputs.items():
        if tensor is not None and (tensor.shape != x.shape or tensor.dtype != x.dtype):
            raise ValueError(f"{op}: {name} must be {x.dtype} {list(x.shape)}, got {tensor.dtype} {list(tensor.shape)}")
        if name != "x" and tensor is not None:
            try:
                tensor.view(-1, tensor.shape[-1])
            except RuntimeError as error:
                raise ValueError(f"{op}: rows of {name} must be at equal distances, got {tensor.stride()}") from error


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    form: Form = "rounded",
    out: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)), in float32 up to the quotient, which is rounded to the dtype of `x`.

    A row's bits do not depend on the rows beside it. No gradients through the kernel.

    Args:
        x: [..., K], float16, bfloat16 or float32; any strides, copied unless each row is contiguous.
        weight: [K], dtype of `x`; on a GPU read early, so not what the very launch in front of this one writes.
        eps: added to the mean square.
        form: "wide": the quotient is not rounded, only its product with the weight is; "shifted": so, and the factor is
            1 + weight.
        out: takes the result: a tensor like `x` whose leading dimensions can be viewed as one, such as a part of wider
            rows.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [..., K], dtype of `x`: `out`, or a new contiguous tensor.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: arXiv 1910.07467, rounded as transformers' LlamaRMSNorm does, or GptOssRMSNorm ("wide") or Gemma2RMSNorm
    ("shifted").
    """
    _check("rms_norm", weight, x=x, out=out)
    if form not in FORMS:
        raise ValueError(f"rms_norm: form must be one of {', '.join(FORMS)}, got {form!r}")
    tensors = (x, weight) if out is None else (x, weight, out)
    if choose_backend("rms_norm", backend, *tensors) == "torch":
        result = reference_layer.rms_norm(x, weight, eps, form)
        return result if out is None else out.copy_(result)
    return _launch(x, None, weight, eps, out=out, form=form)[1]


def add_rms_norm(
    residual: Tensor,
    x: Tensor | Parts,
    weight: Tensor,
    eps: float,
    *,
    count: Tensor | None = None,
    total: Tensor | None = None,
    out: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum `residual + x`, rounded to their dtype, and `rms_norm` of it.

    Args:
        residual, x: [..., K] as in `rms_norm`; x may be what `skinny_parts` leaves to be added up, which is rounded
            before it is added to the residual.
        weight, eps, backend: as in `rms_norm`.
        count: [B] int64 from 1 to N: of residual and x [B, N, K] only row count[b] - 1 is taken.
        total, out: take sum and norm, as in `rms_norm`.

    Returns:
        Sum and norm, each [..., K], or with `count` [B, 1, K], dtype of `residual`: `total` and `out`, or new
        contiguous tensors.

    Raises:
        ValueError: as `rms_norm`.
    """
    shape, dtype = (x.values.shape[1:], x.dtype) if isinstance(x, Parts) else (x.shape, x.dtype)
    if shape != residual.shape or dtype != residual.dtype:
        raise ValueError(
            f"add_rms_norm: residual must be {dtype} {list(shape)}, got {residual.dtype} {list(residual.shape)}"
        )
    if count is not None and (residual.dim() != 3 or count.shape != shape[:1] or count.dtype != torch.int64):
        raise ValueError(
            f"add_rms_norm: with count x must be [B, N, K] and count int64 [B], got {tuple(shape)} and {count.dtype} "
            f"{list(count.shape)}"
        )
    result = residual if count is None else residual[:, :1]
    _check("add_rms_norm", weight, x=result, total=total, out=out)
    given = x[:3] if isinstance(x, Parts) else (x,)
    tensors = [tensor for tensor in (*given, count, total, out) if tensor is not None]
    if choose_backend("add_rms_norm", backend, residual, weight, *tensors) == "torch":
        whole = x.added() if isinstance(x, Parts) else x
        made = reference_layer.add_rms_norm(residual, whole, weight, eps, count=count)
        places = zip(made, (total, out), strict=True)
        sums, normed = (new if place is None else place.copy_(new) for new, place in places)
        return sums, normed
    return _launch(x, residual, weight, eps, total, out, count)
