"""SiLU of one product times another: the middle of a gated MLP."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_layer
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.rms_norm import DTYPES, rows_of

__all__ = ["silu_mul"]


@jit
def silu_kernel(
    gate, up, output, gate_m, up_m,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """output = silu(gate) * up for BLOCK columns of one row; silu(gate) is rounded."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    g = tl.load(gate + row * gate_m + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_m + i, mask=inside, other=0.0).to(tl.float32)
    activated = (g / (1.0 + tl.exp(-g))).to(output.dtype.element_ty).to(tl.float32)
    tl.store(output + row * SIZE + i, (activated * u).to(output.dtype.element_ty), mask=inside)


def silu_plan(*, rows: int, size: int, arch: int) -> Plan:
    block = min(next_power_of_2(size), 1024)  # 16 bytes a thread
    return Plan(
        grid=(rows, -(-size // block)),
        constants={"SIZE": size, "BLOCK": block, "PDL": arch >= 90},
        options={"num_warps": min(max(block // 256, 1), 4)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def silu_mul(gate: Tensor, up: Tensor, *, backend: Backend | None = None) -> Tensor:
    """silu(gate) * up, where silu(x) = x / (1 + exp(-x)) in float32, rounded to the dtype of `gate` before the product.

    No gradients through the kernel.

    Args:
        gate, up: [..., K], float16, bfloat16 or float32; any strides, copied unless each row is contiguous.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [..., K], contiguous, dtype of `gate`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: SwiGLU (arXiv 2002.05202), rounded as transformers' gated MLPs do.
    """
    if gate.shape != up.shape or gate.dim() < 1 or gate.dtype not in DTYPES or up.dtype != gate.dtype:
        raise ValueError(
            f"silu_mul: gate and up must be [..., K] of one float dtype, got {gate.dtype} {tuple(gate.shape)} and "
            f"{up.dtype} {tuple(up.shape)}"
        )
    if choose_backend("silu_mul", backend, gate, up) == "torch":
        return reference_layer.silu_mul(gate, up)
    output = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if output.numel():
        size = gate.shape[-1]
        plan = silu_plan(rows=gate.numel() // size, size=size, arch=architecture(gate.device))
        gate_rows, up_rows = rows_of(gate), rows_of(up)
        plan.launch(silu_kernel, gate_rows, up_rows, output, gate_rows.stride(0), up_rows.stride(0))
    return output
