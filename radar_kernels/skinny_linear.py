"""A linear layer of 1 to 64 rows: the time of reading its weights, which begins before its input is ready."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl

__all__ = ["skinny_linear"]

MAX_ROWS = 64
# (N, K) left to cuBLAS on sm_90 by measurement, for any number of rows: a switch at one of them would change the text
FASTER_IN_CUBLAS: frozenset[tuple[int, int]] = frozenset()


@jit
def _prefetch(
    weight, last, K: tl.constexpr, BN: tl.constexpr, PREFETCH: tl.constexpr, THREADS: tl.constexpr, BULK: tl.constexpr
):  # fmt: skip
    """Asks for the first PREFETCH elements of rows 0 .. BN - 1, none behind `last`, in L2.

    BULK: by a request a row, which a warp issues one after another; else by one for each 128 bytes, from all threads.
    """
    PARTS: tl.constexpr = (THREADS + BN - 1) // BN
    BYTES: tl.constexpr = PREFETCH * (weight.dtype.element_ty.primitive_bitwidth // 8)
    lane = tl.arange(0, BN * PARTS)
    address = (weight + tl.minimum(lane // PARTS, last) * K).to(tl.int64)
    if BULK:
        size = tl.where(lane % PARTS == 0, BYTES, 0)
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
            "=r,l,r", [address, size], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        address += lane % PARTS * 128
        for _ in tl.static_range(BYTES // (128 * PARTS)):
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
            )
            address += 128 * PARTS


@jit
def linear_kernel(
    x, weight, bias, output, x_m, rows, n,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STEPS: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr, PREFETCH: tl.constexpr, BULK: tl.constexpr,
    THREADS: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = x W^T + b for all rows and BN of the N outputs; with SPLITS > 1 the sum over a part of K, in float32.

    SWAP: as y^T = W x^T, where weights stand at the side of which a tensor core takes 64 at least.

    The first columns of the weights are asked for before the wait for the kernel in front: nobody writes weights while
    a model runs. x, which that kernel may be writing, is read after the wait. The release comes after the wait, as in
    every kernel here: Inductor's kernels read what older kernels wrote before they wait, and rely on it.
    """
    first = tl.program_id(0) * BN
    split = tl.program_id(1)
    i = tl.arange(0, BN)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, BK)
    weight += first.to(tl.int64) * K + split * (STEPS * BK)  # int64: weights can hold more than 2**31 elements
    x += split * (STEPS * BK)
    last = n - 1 - first
    if PDL:
        if PREFETCH > 0:
            _prefetch(weight, last, K, BN, PREFETCH, THREADS, BULK)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # outputs behind the last one are computed from its weights and not stored
    w_at = tl.minimum(i, last)[:, None] * K + k[None, :]
    x_at = m[:, None] * x_m + k[None, :]
    real = (m < rows)[:, None]
    y = tl.zeros([BN, ROWS] if SWAP else [ROWS, BN], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        if K % BK == 0:
            w_part = tl.load(weight + step * BK + w_at)
            x_part = tl.load(x + step * BK + x_at, mask=real, other=0.0)
        else:  # both, because 0 * NaN = NaN
            inside = (k < K - (split * STEPS + step) * BK)[None, :]
            w_part = tl.load(weight + step * BK + w_at, mask=inside, other=0.0)
            x_part = tl.load(x + step * BK + x_at, mask=real & inside, other=0.0)
        y = tl.dot(w_part, tl.trans(x_part), y) if SWAP else tl.dot(x_part, tl.trans(w_part), y)
    y = tl.trans(y) if SWAP else y
    if SPLITS > 1:
        output += split * (rows * n)
    elif BIAS:
        y += tl.load(bias + first + tl.minimum(i, last)).to(tl.float32)[None, :]
    at = m[:, None] * n + (first + i)[None, :]
    tl.store(output + at, y.to(output.dtype.element_ty), mask=real & (i <= last)[None, :])


@jit
def combine_kernel(
    partial, bias, output, n, size,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = sum_s partial[s] + b, always from the first split to the last."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < size
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    y = tl.load(partial + i, mask=real, other=0.0)
    for split in tl.static_range(1, SPLITS):
        y += tl.load(partial + split * size + i, mask=real, other=0.0)
    if BIAS:
        y += tl.load(bias + i % n, mask=real, other=0.0).to(tl.float32)
    tl.store(output + i, y.to(output.dtype.element_ty), mask=real)


class Blocks(NamedTuple):
    """What decides how the sums over K are ordered, and how much is in flight. Never a function of the rows."""

    outputs: int  # of a program
    depth: int  # columns of a step
    splits: int  # of K
    warps: int
    shared: int  # bytes of shared memory a program may fill with stages
    prefetch: int  # bytes that all programs that run at once ask for before the wait
    bulk: bool  # by one request a row


def choose_blocks(*, n: int, arch: int) -> Blocks:
    """For `n` outputs: a program or two for each of about 130 multiprocessors, all of them at once where possible."""
    if arch != 90:  # no wgmma: operands pass through registers. Shared memory may be 99 KiB
        return Blocks(128 if n >= 16384 else 32, 64, 1, 4, 80_000, 12_000_000, False)
    if n >= 24576:
        return Blocks(128, 64, 1, 4, 110_000, 12_000_000, False)  # two programs a multiprocessor
    if n > 4224:
        return Blocks(64, 128, 1, 4, 220_000, 12_000_000, False)
    return Blocks(32, 128, 1, 4, 220_000, 12_000_000, False)


def skinny_plan(*, rows: int, n: int, k: int, dtype: torch.dtype, bias: bool, arch: int) -> Plan | None:
    """How `linear_kernel` runs; None where F.linear does. Only ROWS and STAGES, which order no sum, depend on rows."""
    if not 1 <= rows <= MAX_ROWS or k % 16 or dtype not in (torch.float16, torch.bfloat16) or 0 < arch < 80:
        return None
    if arch == 90 and (n, k) in FASTER_IN_CUBLAS:
        return None
    outputs, depth, splits, warps, shared, prefetch, bulk = choose_blocks(n=n, arch=arch)
    swap = outputs >= 64 or arch not in (0, 90)
    pad = max(16, next_power_of_2(rows)) if swap else MAX_ROWS  # wgmma takes 64 of the first operand
    steps, tiles = -(-k // depth), -(-n // outputs)
    while steps % splits:
        splits -= 1
    stages = max(2, min(8, shared // ((outputs + pad) * depth * 2)))
    columns = min(prefetch // (2 * outputs * min(tiles * splits, 264)), k // splits)
    unit = 64 * max(1, 32 * warps // outputs)  # 128 bytes from every thread
    return Plan(
        grid=(tiles, splits),
        constants={
            "K": k, "ROWS": pad, "BN": outputs, "BK": depth, "STEPS": steps // splits, "SPLITS": splits,
            "STAGES": stages, "SWAP": swap, "PREFETCH": columns // unit * unit, "BULK": bulk, "THREADS": 32 * warps,
            "BIAS": bias, "PDL": arch >= 90,
        },
        options={"num_warps": warps, "num_stages": stages} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def combine_plan(*, size: int, splits: int, bias: bool, arch: int) -> Plan:
    block = 256  # one warp: even one row makes programs for several multiprocessors
    return Plan(
        grid=(-(-size // block),),
        constants={"SPLITS": splits, "BLOCK": block, "BIAS": bias, "PDL": arch >= 90},
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


@torch.library.custom_op("radar_kernels::skinny_linear", mutates_args=())
def _launch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # an opaque op, so that torch.compile keeps the graph whole and the launches as they are
    n, k = weight.shape
    rows = x.numel() // max(k, 1)
    arch = architecture(x.device)
    plan = skinny_plan(rows=rows, n=n, k=k, dtype=x.dtype, bias=bias is not None, arch=arch)
    if plan is None or not weight.is_contiguous() or weight.data_ptr() % 16:
        return F.linear(x, weight, bias)
    x_rows = x.reshape(rows, k)
    if x_rows.stride(1) != 1 or rows * x_rows.stride(0) >= 2**31:
        x_rows = x_rows.contiguous()
    splits = plan.constants["SPLITS"]
    output = x.new_empty(*x.shape[:-1], n)
    partial = x.new_empty(splits, rows, n, dtype=torch.float32) if splits > 1 else output
    addend = weight if bias is None else bias.contiguous()
    plan.launch(linear_kernel, x_rows, weight, addend, partial, x_rows.stride(0), rows, n)
    if splits > 1:
        combine = combine_plan(size=rows * n, splits=splits, bias=bias is not None, arch=arch)
        combine.launch(combine_kernel, partial, addend, output, n, rows * n)
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
    """F.linear whose kernel reads weights while the one in front of it still runs, for at most 64 rows.

    A row's result is the same, bit for bit, among 1 and among 64 rows: the sum over K is taken in one order, whatever
    their number (sums in float32, rounded once). So the text of speculative decoding in 16 bits is not changed by how
    many nodes are verified together. More rows, other dtypes, K not a multiple of 16 or weights that are not contiguous
    go to F.linear, which promises nothing of the kind. No gradients.

    Args:
        x: [..., K], float16 or bfloat16 for the kernel; any strides, copied unless each row is contiguous.
        weight: [N, K], dtype of `x`. Must not be written by the kernel in front on the same stream.
        bias: [N], dtype of `x`; None for none.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [..., N], contiguous, dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: the linear layers of RADAR's draft and verify steps (arXiv 2512.14069); programmatic dependent launch of
        the CUDA programming guide.
    """
    _check(x, weight, bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if choose_backend("skinny_linear", backend, *tensors) == "torch" or x.numel() > MAX_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    output: Tensor = _launch(x, weight, bias)
    return output
