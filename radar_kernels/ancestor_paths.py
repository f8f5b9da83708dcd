"""Ancestor bits of tree nodes as paths: what canonical attention gathers by, made once for all layers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_canonical
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference_canonical import Paths

__all__ = ["Paths", "ancestor_paths"]


@jit
def paths_kernel(
    ancestors_ptr, columns_ptr, lengths_ptr, stride_b, stride_n, stride_w, nodes, longest,
    COLUMNS: tl.constexpr, COLUMNS_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One node's set bits, numbered from the lowest on."""
    node, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = ancestors_ptr + batch * stride_b + node * stride_n + column // 64 * stride_w
    word = tl.load(at, mask=column < COLUMNS, other=0)
    bit = (word >> (column % 64).to(tl.int64) & 1).to(tl.int32)
    place = tl.cumsum(bit, 0) - 1
    row = batch * nodes + node
    tl.store(columns_ptr + row * longest + place, column, mask=(bit > 0) & (place < longest))
    tl.store(lengths_ptr + row, tl.sum(bit, 0))


def paths_plan(*, batch: int, nodes: int, words: int, arch: int) -> Plan:
    constants = {"COLUMNS": 64 * words, "COLUMNS_PAD": next_power_of_2(64 * words), "PDL": arch >= 90}
    return Plan((nodes, batch), constants, {"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}))


def ancestor_paths(ancestors: Tensor, longest: int, *, backend: Backend | None = None) -> Paths:
    """Ancestor words, in which a parent comes before its children, as paths.

    Args:
        ancestors: [B, N, W] int64; bit c of word w is column 64 w + c. May be expanded over the batch.
        longest: P, columns of a path; what a longer one has behind them is left out, but counted.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        columns [B, N, P] and lengths [B, N]; see `Paths`.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    if ancestors.dim() != 3 or ancestors.dtype != torch.int64:
        raise ValueError(f"ancestor_paths: ancestors must be int64 [B, N, W], got {ancestors.dtype} {ancestors.shape}")
    if longest < 1:
        raise ValueError(f"ancestor_paths: longest must be positive, got {longest}")
    if choose_backend("ancestor_paths", backend, ancestors) == "torch":
        return reference_canonical.ancestor_paths(ancestors, longest)
    batch, nodes, words = ancestors.shape
    columns = torch.empty(batch, nodes, longest, dtype=torch.int32, device=ancestors.device)
    lengths = torch.empty(batch, nodes, dtype=torch.int32, device=ancestors.device)
    plan = paths_plan(batch=batch, nodes=nodes, words=words, arch=architecture(ancestors.device))
    plan.launch(paths_kernel, ancestors, columns, lengths, *ancestors.stride(), nodes, longest)
    return Paths(columns, lengths)
