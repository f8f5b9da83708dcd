"""Cosines and sines of rotary embedding, in one kernel for a forward's rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_layer
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.rms_norm import DTYPES

__all__ = ["rotary_angles"]


@jit
def angles_kernel(
    positions, frequencies, cos, sin, scaling, HALF: tl.constexpr, HALF_PAD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """cos, sin = scaling * cos(p f), scaling * sin(p f) for one position p, twice side by side."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, HALF_PAD)
    inside = d < HALF
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    angle = tl.load(positions + row).to(tl.float32) * tl.load(frequencies + d, mask=inside, other=0.0)
    c = (tl.cos(angle) * scaling).to(cos.dtype.element_ty)
    s = (tl.sin(angle) * scaling).to(sin.dtype.element_ty)
    at = row * 2 * HALF + d
    tl.store(cos + at, c, mask=inside)
    tl.store(cos + HALF + at, c, mask=inside)
    tl.store(sin + at, s, mask=inside)
    tl.store(sin + HALF + at, s, mask=inside)


def angles_plan(*, rows: int, half: int, arch: int) -> Plan:
    return Plan(
        grid=(rows,),
        constants={"HALF": half, "HALF_PAD": next_power_of_2(half), "PDL": arch >= 90},
        options={"num_warps": 1, "enable_fp_fusion": False} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def rotary_angles(
    positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype, *, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """What stock rotary modules make of positions: cos(p f) and sin(p f) in float32, scaled, then rounded.

    Args:
        positions: [..., N] int64.
        frequencies: [D / 2] float32, radians a position.
        scaling: factor on both.
        dtype: of the results, float16, bfloat16 or float32.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        Cosines and sines [..., N, D], the second half of D like the first.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: RoFormer (arXiv 2104.09864) in the form of halves that transformers uses.
    """
    if positions.dtype != torch.int64 or frequencies.dim() != 1 or frequencies.dtype != torch.float32:
        raise ValueError(
            "rotary_angles: positions must be int64 and frequencies float32 [D / 2], got "
            f"{positions.dtype} and {frequencies.dtype} {tuple(frequencies.shape)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"rotary_angles: dtype must be one of {DTYPES}, got {dtype}")
    if choose_backend("rotary_angles", backend, positions, frequencies) == "torch":
        return reference_layer.rotary_angles(positions, frequencies, scaling, dtype)
    half, rows = len(frequencies), positions.numel()
    cos, sin = (torch.empty(*positions.shape, 2 * half, dtype=dtype, device=positions.device) for _ in range(2))
    if rows:
        plan = angles_plan(rows=rows, half=half, arch=architecture(positions.device))
        plan.launch(angles_kernel, positions.contiguous(), frequencies.contiguous(), cos, sin, scaling)
    return cos, sin
