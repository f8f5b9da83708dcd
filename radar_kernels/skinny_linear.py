"""A linear layer of few rows: reading its weights, by kernels that start while the one in front of them ends."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import (
    HAS_GLUON,
    Backend,
    Plan,
    TensorDescriptor,
    architecture,
    choose_backend,
    gl,
    next_power_of_2,
)
from radar_kernels._linear_kernel import linear_kernel, plain_kernel, sum_kernel
from radar_kernels.quantize_rows import LARGEST, LINE
from radar_kernels.reference import Parts

__all__ = ["Parts", "runs_skinny", "skinny_linear", "skinny_parts"]

MOST_ROWS = 256
MOST_NARROW = 1024  # rows of 8-bit weights, which no library reads as they are stored
SUMMED = 1024  # results of a program that adds up parts
STREAMED = HAS_GLUON  # False: `plain_kernel` for everything


class Blocks(NamedTuple):
    """How the work is cut. `depth` and `parts` decide the order of the sums, so rows have no part in them."""

    outputs: int  # of a program
    depth: int  # columns of a tile
    warps: int
    shared: int  # bytes of shared memory that the tiles of a program may fill
    parts: int = 1  # of the columns, each summed by programs of its own
    rows: int = 128  # of a program, at the most


def choose_blocks(*, n: int, k: int, narrow: bool) -> Blocks:
    """For `linear_kernel`, by what an H200 was fastest with."""
    if n >= 24576:
        return Blocks(128, LINE if narrow else 64, 4, 110_000)  # two programs a multiprocessor
    if narrow:  # many, since they are kept busy by what is done to a weight in registers
        return Blocks(64, LINE, 4, 110_000, parts=max(1, 12288 // n))
    return Blocks(64, 128, 4, 220_000)  # one, with all of its shared memory in flight


def plain_blocks(*, n: int) -> Blocks:
    """For `plain_kernel`: the fastest of those in bench/results/kernels/tune_skinny_linear_h200.json."""
    return Blocks(128, 64, 4, 110_000, rows=64) if n >= 24576 else Blocks(64, 128, 4, 220_000, rows=64)


class Launches(NamedTuple):
    """How a product runs: in one kernel or, where programs share sums, with `sum_kernel` behind it."""

    linear: Plan
    sum: Plan | None
    box: tuple[int, int, int]  # outputs, rows and columns of the tiles that the copy engine fetches


def skinny_plan(
    *, rows: int, n: int, k: int, dtype: torch.dtype, bias: bool, arch: int, narrow: bool = False
) -> Launches | None:
    """None where the reference runs, as on all that is not Hopper: nothing was measured there."""
    most = MOST_NARROW if narrow else MOST_ROWS
    if arch not in (0, 90) or not 1 <= rows <= most or k % 16 or dtype not in (torch.float16, torch.bfloat16):
        return None
    streamed = STREAMED and arch == 90
    blocks = choose_blocks(n=n, k=k, narrow=narrow) if streamed else plain_blocks(n=n)
    outputs, pad = blocks.outputs, min(max(16, next_power_of_2(rows)), blocks.rows)
    depth = LINE if narrow and streamed else blocks.depth
    steps = -(-k // depth)
    each = -(-steps // blocks.parts)
    parts = -(-steps // each)  # none is empty
    stage = (outputs * (1 if narrow else 2) + pad * 2) * depth
    common = {"NARROW": narrow, "BIAS": bias, "PDL": arch >= 90}
    constants = {"ROWS": pad, "BN": outputs, "BK": depth, **common}
    options: dict[str, Any] = {"enable_fp_fusion": False} | ({"launch_pdl": True} if arch >= 90 else {})
    grid, box = (-(-rows // pad), -(-n // outputs)), (outputs, pad, depth)
    stages = max(2, min(24 if streamed else 8, blocks.shared // stage))
    if narrow and not streamed:  # Triton 3.6 overlaps products whose registers it fills again meanwhile
        stages = 1
    constants["STAGES"], warps = stages, {"num_warps": blocks.warps}
    if not streamed:
        return Launches(Plan(grid, {"K": k} | constants, warps | {"num_stages": stages} | options), None, box)
    linear = Plan((*grid, parts), {"PARTS": parts} | constants, warps | options)
    add = Plan((-(-rows * n // SUMMED),), {"BLOCK": SUMMED, "PARTS": parts} | common, {"num_warps": 4} | options)
    return Launches(linear, add if parts > 1 else None, box)


def runs_skinny(weight: Tensor) -> bool:
    """Whether `skinny_linear` has a kernel for inputs of this weight's dtype [N, K] on its device."""
    n, k = weight.shape
    arch = architecture(weight.device)
    return arch > 0 and skinny_plan(rows=1, n=n, k=k, dtype=weight.dtype, bias=False, arch=arch) is not None


def tile(tensor: Tensor, lines: int, columns: int) -> Any:
    """The rows and columns of [M, K] that the copy engine fetches at once; zero beyond the last."""
    size = tensor.element_size()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(128, columns * size), element_bitwidth=8 * size, rank=2)
    return TensorDescriptor.from_tensor(tensor, [lines, columns], layout)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, *, whole: bool) -> Tensor | Parts:
    n, k = len(weight), x.shape[-1]
    rows = x.numel() // k
    how: dict[str, Any] = {"bias": bias is not None, "narrow": scale is not None, "arch": architecture(x.device)}
    plan = skinny_plan(rows=rows, n=n, k=k, dtype=x.dtype, **how)
    if plan is None or not weight.is_contiguous() or weight.data_ptr() % 16:
        return reference.skinny_linear(x, weight, bias, scale)
    x_rows = x.reshape(rows, k)
    x_m = x_rows.stride(0)
    if x_rows.stride(1) != 1 or x_m < k or x_m % 8 or x_m * rows >= 2**31 or x_rows.data_ptr() % 16:
        x_rows = x_rows.clone(memory_format=torch.contiguous_format)
    output = x.new_empty(*x.shape[:-1], n)
    addends = (x if bias is None else bias.contiguous(), x if scale is None else scale.contiguous())
    if "PARTS" not in plan.linear.constants:
        plan.linear.launch(plain_kernel, x_rows, weight, *addends, output, x_rows.stride(0), rows, n)
        return output
    outputs, pad, depth = plan.box
    tiles, steps = (tile(x_rows, pad, depth), tile(weight, outputs, depth)), -(-k // depth)
    if plan.sum is None:
        plan.linear.launch(linear_kernel, *tiles, *addends, output, rows, n, steps)
        return output
    parts = x.new_empty(plan.linear.grid[2], *x.shape[:-1], n, dtype=torch.float32)
    plan.linear.launch(linear_kernel, *tiles, *addends, parts, rows, n, steps)
    if not whole:
        return Parts(parts, scale, bias, x.dtype)
    plan.sum.launch(sum_kernel, parts, *addends, output, rows * n, n)
    return output


@torch.library.custom_op("radar_kernels::skinny_linear", mutates_args=())
def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    output = _run(x, weight, bias, scale, whole=True)
    assert isinstance(output, Tensor)
    return output


@_launch.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"skinny_linear: {message}")

    k = x.shape[-1] if x.dim() else 0
    stored = k if scale is None else -(-k // LINE) * LINE
    if weight.dim() != 2 or x.dim() < 1 or stored != weight.shape[1]:
        columns = "K" if scale is None else "K rounded up to 128"
        fail(f"x must be [..., K] and weight [N, {columns}], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if scale is None and (not x.dtype.is_floating_point or weight.dtype != x.dtype):
        fail(f"x and weight must share one float dtype, got {x.dtype} and {weight.dtype}")
    if scale is not None and (not x.dtype.is_floating_point or weight.dtype not in LARGEST):
        fail(f"with scale, x must be floating and weight int8 or float8_e4m3fn, got {x.dtype} and {weight.dtype}")
    if scale is not None and (scale.shape != weight.shape[:1] or scale.dtype != torch.float32):
        fail(f"scale must be torch.float32 [{weight.shape[0]}], got {scale.dtype} {tuple(scale.shape)}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        fail(f"bias must be {x.dtype} [{weight.shape[0]}], got {bias.dtype} {tuple(bias.shape)}")


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """F.linear for up to 256 rows, whose results do not depend on one another, without gaps between kernels.

    On Hopper a row's result is the same, bit for bit, whatever the number of rows: columns are summed in one order that
    N and K alone decide. cuBLAS promises nothing of the kind and takes no part in programmatic dependent launch, where
    these kernels fetch their first weights while the kernel in front of them ends. So that one must not write the
    weights. Other cards, more rows (of 8-bit weights more than 1,024) and other dtypes go to F.linear. No gradients.

    Args:
        x: [..., K], float16 or bfloat16 for the kernel; any strides, copied unless each row is contiguous.
        weight: [N, K], dtype of `x`; with `scale` int8 or float8_e4m3fn, as `quantize_rows` stores it.
        bias: [N], dtype of `x`; None for none.
        scale: [N] float32 that the rows of an 8-bit weight are multiplied by.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [..., N], dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: the linear layers of RADAR's draft and verify steps (arXiv 2512.14069); programmatic dependent launch and
        tensor maps of the CUDA programming guide.
    """
    if _is_plain(x, weight, bias, scale, backend):
        return reference.skinny_linear(x, weight, bias, scale)
    output: Tensor = _launch(x, weight, bias, scale)
    return output


def skinny_parts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor | Parts:
    """`skinny_linear` in front of an `add_rms_norm`, which adds up what programs have summed by themselves."""
    if _is_plain(x, weight, bias, scale, backend):
        return reference.skinny_linear(x, weight, bias, scale)
    return _run(x, weight, bias, scale, whole=False)


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, backend: Backend | None) -> bool:
    """Whether the reference runs, whatever the shapes. Raises ValueError."""
    _check(x, weight, bias, scale)
    tensors = [x, weight, *(one for one in (bias, scale) if one is not None)]
    plain = choose_backend("skinny_linear", backend, *tensors) == "torch"
    return plain or not 0 < x.numel() <= (MOST_ROWS if scale is None else MOST_NARROW) * x.shape[-1]
