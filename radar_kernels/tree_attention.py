"""Attention of the nodes of a token tree over a cached prefix and their own ancestors."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._attention_kernels import combine_kernel, split_kernel
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, next_power_of_2

__all__ = ["LOG2_E", "check_tensors", "tree_attention"]

LOG2_E = 1.4426950408889634


class Blocks(NamedTuple):
    """Block sizes of `split_kernel`."""

    rows: int  # node-head pairs of a program
    keys: int  # prefix keys of a step
    stages: int  # steps in flight
    warps: int
    programs: int  # that run at the same time on about 130 multiprocessors: how often to split


def choose_blocks(*, rows: int, capacity: int, dim: int, dtype: torch.dtype, arch: int) -> Blocks:
    """For `rows` node-head pairs of one key-value head, such that nothing spills (tests/kernels/test_compile.py).

    Those for 16-bit types on Hopper are measured: bench/results/kernels/tune_tree_attention_h200.txt.
    """
    rows, dim = max(next_power_of_2(rows), 16), next_power_of_2(dim)
    if dtype == torch.float32:  # no tensor cores at full precision: small blocks, unrolled by the compiler
        return Blocks(16, 16 if dim > 64 else 32, 1, 4, 256)
    if dim > 128:
        return Blocks(16, 64, 1, 4, 256)
    several, rows = rows > 64, 16 if rows <= 16 else 64
    if arch != 90:  # no wgmma: operands pass through registers
        return Blocks(min(rows, 32) if dim > 64 else rows, 64, 2, 4, 256)
    if several and capacity > 8192:  # tiles share their keys in L2: arithmetic is the limit
        return Blocks(128, 64, 3, 8, 128)
    return Blocks(rows, 64, 4 if rows == 64 and not several else 3, 4, 128)


def split_plan(
    *,
    batch: int,
    kv_heads: int,
    group: int,
    nodes: int,
    words: int,
    capacity: int,
    dim: int,
    dtype: torch.dtype,
    arch: int,
) -> Plan:
    rows, keys, stages, warps, programs = choose_blocks(
        rows=nodes * group, capacity=capacity, dim=dim, dtype=dtype, arch=arch
    )
    tiles = -(-nodes * group // rows)
    splits = max(1, min(programs // (batch * kv_heads * tiles), capacity // (2 * keys), 32))
    return Plan(
        grid=(splits, batch * kv_heads, tiles),
        constants={
            "WORDS": words, "GROUP": group, "DIM": dim, "DIM_PAD": next_power_of_2(max(dim, 16)), "SPLITS": splits,
            "ROWS": rows, "KEYS": keys, "TAIL": min(keys, 64 if arch == 90 else 32), "COST": 3 if tiles > 1 else 4,
            "STAGES": stages, "PDL": arch >= 90,
        },
        options={"num_warps": warps, "num_stages": stages} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def combine_plan(*, rows: int, splits: int, dim: int, arch: int) -> Plan:
    dim_pad, splits_pad = next_power_of_2(max(dim, 16)), next_power_of_2(splits)
    block = max(1, 256 // dim_pad)  # one warp, 16 bytes a thread: programs for every multiprocessor, and all at once
    return Plan(
        grid=(-(-rows // block),),
        constants={
            "DIM": dim, "DIM_PAD": dim_pad, "SPLITS": splits, "SPLITS_PAD": splits_pad, "ROWS": block,
            "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::tree_attention", mutates_args=())
def _launch(
    query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor, scale: float
) -> Tensor:  # an opaque op, so that torch.compile keeps the graph whole and the launches as they are
    batch, heads, nodes, dim = query.shape
    kv_heads, capacity, words = key.shape[1], key.shape[2], ancestors.shape[2]
    arch = architecture(query.device)
    plan = split_plan(
        batch=batch, kv_heads=kv_heads, group=heads // kv_heads, nodes=nodes, words=words, capacity=capacity, dim=dim,
        dtype=query.dtype, arch=arch,
    )  # fmt: skip
    splits = plan.constants["SPLITS"]
    rows = batch * nodes * heads
    output = query.new_empty(batch, nodes, heads, dim)
    partial, lse = output, output
    if splits > 1:
        partial = query.new_empty(splits, rows, dim)
        lse = query.new_empty(splits, rows, dtype=torch.float32)
    plan.launch(
        split_kernel, query, key, value, prefix_length, ancestors, output, partial, lse, scale * LOG2_E,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *ancestors.stride(), nodes, capacity, kv_heads,
        rows,
    )  # fmt: skip
    if splits > 1:
        combine = combine_plan(rows=rows, splits=splits, dim=dim, arch=arch)
        combine.launch(combine_kernel, partial, lse, output, rows)
    return output


@_launch.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    batch, heads, nodes, dim = query.shape
    return query.new_empty(batch, nodes, heads, dim)


def check_tensors(
    op: str, query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, *, paged: bool = False
) -> None:
    """What every attention here asks of its tensors; a `paged` cache has pages for rows. Raises ValueError."""

    def fail(message: str) -> None:
        raise ValueError(f"{op}: {message}")

    if query.dim() != 4 or key.dim() != 4:
        fail(f"query must be [B, H, N, D] and key [B, KV, S, D], got {tuple(query.shape)} and {tuple(key.shape)}")
    batch, heads, _, dim = query.shape
    if key.shape != value.shape:
        fail(f"key and value must have one shape, got {tuple(key.shape)} and {tuple(value.shape)}")
    if key.shape[3] != dim or (key.shape[0] != batch and not paged):
        fail(f"key must be [{'P' if paged else batch}, KV, S, {dim}] like the query, got {tuple(key.shape)}")
    if heads % key.shape[1]:
        fail(f"query heads must be a multiple of key-value heads, got {heads} and {key.shape[1]}")
    if not query.dtype.is_floating_point or key.dtype != query.dtype or value.dtype != query.dtype:
        fail(f"query, key and value must share one float dtype, got {query.dtype}, {key.dtype} and {value.dtype}")
    if prefix_length.shape != (batch,) or prefix_length.dtype != torch.int64:
        fail(f"prefix_length must be int64 [{batch}], got {prefix_length.dtype} {tuple(prefix_length.shape)}")


def _check(query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor) -> None:
    check_tensors("tree_attention", query, key, value, prefix_length)
    batch, _, nodes, _ = query.shape
    if ancestors.dim() != 3 or ancestors.shape[:2] != (batch, nodes) or ancestors.dtype != torch.int64:
        raise ValueError(
            f"tree_attention: ancestors must be int64 [{batch}, {nodes}, W], got {ancestors.dtype} "
            f"{tuple(ancestors.shape)}"
        )


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_length: Tensor,
    ancestors: Tensor,
    *,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attend from N tree nodes to a cached prefix and to those rows after it that each node's bits show.

    Key j is visible to node n of sequence b if j < prefix_length[b], or if bit c of ancestors[b, n, w] is set, where
    j = prefix_length[b] + 64 * w + c and j < S. Softmax is in float32. Keys that nobody sees never matter, whatever
    they hold (NaN included); a node that sees nothing returns 0. The lengths stay on the device, so one captured graph
    serves all of them.

    Args:
        query: [B, H, N, D], float16, bfloat16 or float32; any strides with a contiguous last dimension.
        key, value: [B, KV, S, D], the static cache, dtype of `query`; H is a multiple of KV.
        prefix_length: [B] int64, from 0 to S.
        ancestors: [B, N, W] int64; bit 63 is the sign. May be expanded over the batch.
        scale: factor on the scores, default D ** -0.5.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [B, N, H, D], contiguous, dtype of `query`: what an output projection reads.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: tree verification of EAGLE-3 (arXiv 2503.01840), used by RADAR (arXiv 2512.14069).
    """
    _check(query, key, value, prefix_length, ancestors)
    if scale is None:
        scale = query.shape[3] ** -0.5
    if choose_backend("tree_attention", backend, query, key, value, prefix_length, ancestors) == "torch":
        return reference.tree_attention(query, key, value, prefix_length, ancestors, scale=scale)
    if query.dtype == torch.float64:
        raise ValueError("tree_attention: the Triton kernel takes float16, bfloat16 or float32, got torch.float64")
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    output: Tensor = _launch(query, key, value, prefix_length, ancestors, scale)
    return output
