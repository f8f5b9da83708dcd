"""A linear layer of a few rows: reading its weights, by a kernel that starts while the one in front of it ends."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl

__all__ = ["skinny_linear"]

MOST_ROWS = 64
FEW_ROWS = 16  # with more, cuBLAS reads the weights of one layer faster
MANY_OUTPUTS = 65536  # but not those of an output layer


@jit
def linear_kernel(
    x, weight, bias, output, x_m, rows, n,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, BIAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y^T = W x^T + b for BN of the N outputs and all rows, summed in float32 from the first column to the last.

    The weights stand where a matrix product has its many rows, so that no tensor core works for padding.
    """
    first = tl.program_id(0) * BN
    i = tl.arange(0, BN)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, BK)
    weight += first.to(tl.int64) * K  # int64: weights can hold more than 2**31 elements
    last = n - 1 - first
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # outputs behind the last one are computed from its weights and not stored
    w_at = tl.minimum(i, last)[:, None] * K + k[None, :]
    x_at = m[None, :] * x_m + k[:, None]
    real = (m < rows)[None, :]
    y = tl.zeros([BN, ROWS], tl.float32)
    for step in tl.range(0, (K + BK - 1) // BK, num_stages=STAGES):
        if K % BK == 0:
            w = tl.load(weight + step * BK + w_at)
            x_t = tl.load(x + step * BK + x_at, mask=real, other=0.0)
        else:  # both, because 0 * NaN = NaN
            inside = k < K - step * BK
            w = tl.load(weight + step * BK + w_at, mask=inside[None, :], other=0.0)
            x_t = tl.load(x + step * BK + x_at, mask=real & inside[:, None], other=0.0)
        y = tl.dot(w, x_t, y)
    if BIAS:
        y += tl.load(bias + first + tl.minimum(i, last)).to(tl.float32)[:, None]
    at = m[None, :] * n + (first + i)[:, None]
    tl.store(output + at, y.to(output.dtype.element_ty), mask=real & (i <= last)[:, None])


class Blocks(NamedTuple):
    """Block sizes of `linear_kernel`. Never a function of the rows: they decide the order of the sums."""

    outputs: int  # of a program
    depth: int  # columns of a step
    warps: int
    shared: int  # bytes of shared memory that a program may fill with steps in flight


def choose_blocks(*, n: int) -> Blocks:
    """The fastest on an H200 of those in bench/results/kernels/tune_skinny_linear_h200.json."""
    if n >= 24576:
        return Blocks(128, 64, 4, 110_000)  # two programs a multiprocessor
    return Blocks(64, 128, 4, 220_000)  # one, with all of its shared memory in flight


def skinny_plan(*, rows: int, n: int, k: int, dtype: torch.dtype, bias: bool, arch: int) -> Plan | None:
    """How `linear_kernel` runs; None where F.linear does, as on all that is not Hopper: nothing was measured there."""
    if arch not in (0, 90) or not 1 <= rows <= MOST_ROWS or k % 16 or dtype not in (torch.float16, torch.bfloat16):
        return None
    if rows > FEW_ROWS and n < MANY_OUTPUTS:
        return None
    outputs, depth, warps, shared = choose_blocks(n=n)
    pad = max(16, next_power_of_2(rows))
    stages = max(2, min(8, shared // ((outputs + pad) * depth * 2)))
    return Plan(
        grid=(-(-n // outputs),),
        constants={
            "K": k, "ROWS": pad, "BN": outputs, "BK": depth, "STAGES": stages, "BIAS": bias, "PDL": arch >= 90,
        },
        options={"num_warps": warps, "num_stages": stages} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::skinny_linear", mutates_args=())
def _launch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # an opaque op, so that torch.compile keeps the graph whole and the launches as they are
    n, k = weight.shape
    rows = x.numel() // k
    plan = skinny_plan(rows=rows, n=n, k=k, dtype=x.dtype, bias=bias is not None, arch=architecture(x.device))
    if plan is None or not weight.is_contiguous() or weight.data_ptr() % 16:
        return F.linear(x, weight, bias)
    x_rows = x.reshape(rows, k)
    if x_rows.stride(1) != 1 or rows * x_rows.stride(0) >= 2**31:
        x_rows = x_rows.contiguous()
    output = x.new_empty(*x.shape[:-1], n)
    addend = weight if bias is None else bias.contiguous()
    plan.launch(linear_kernel, x_rows, weight, addend, output, x_rows.stride(0), rows, n)
    return output


@_launch.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"skinny_linear: {message}")

    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        fail(f"x must be [..., K] and weight [N, K], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if not x.dtype.is_floating_point or weight.dtype != x.dtype:
        fail(f"x and weight must share one float dtype, got {x.dtype} and {weight.dtype}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        fail(f"bias must be {x.dtype} [{weight.shape[0]}], got {bias.dtype} {tuple(bias.shape)}")


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None) -> Tensor:
    """F.linear for the few rows of a token, a draft call or an output layer, without gaps between kernels.

    cuBLAS takes no part in programmatic dependent launch, and splits long sums over two kernels; one kernel that starts
    while the one in front of it ends is 7 % faster over a layer of 1 to 16 rows (bench/NOTES.md). Up to 16 rows a row's
    result is the same, bit for bit, whatever their number. Everything else, and other cards, go to F.linear. No
    gradients.

    Args:
        x: [..., K], float16 or bfloat16 for the kernel; any strides, copied unless each row is contiguous.
        weight: [N, K], dtype of `x`.
        bias: [N], dtype of `x`; None for none.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [..., N], dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: the linear layers of RADAR's draft and verify steps (arXiv 2512.14069); programmatic dependent launch of
        the CUDA programming guide.
    """
    _check(x, weight, bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if choose_backend("skinny_linear", backend, *tensors) == "torch" or not 0 < x.numel() <= MOST_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    output: Tensor = _launch(x, weight, bias)
    return output
