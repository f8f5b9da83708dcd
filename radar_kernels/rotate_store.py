"""Rotary embedding of queries and keys, and the keys' and values' way into the cache, in one kernel."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import math

import torch
from torch import Tensor

from radar_kernels import reference_layer
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels._pages import check_table, place_of
from radar_kernels.reference_canonical import PAGE
from radar_kernels.reference_layer import HeadNorms
from radar_kernels.rms_norm import DTYPES

__all__ = ["HeadNorms", "rotate_store"]


@jit
def rotate_kernel(
    query, key, value, cos, sin, key_cache, value_cache, start, positions, query_weight, key_weight, block_table,
    output, query_b, query_n, key_b, key_n, value_b, value_n, cos_b, cos_n, sin_b, sin_n, positions_b,
    positions_n, key_cache_b, key_cache_h, key_cache_s, value_cache_b, value_cache_h, value_cache_s, table_b, nodes,
    heads, kv_heads, capacity, eps,
    DIM: tl.constexpr, HALF_PAD: tl.constexpr, HEADS: tl.constexpr, TABLE: tl.constexpr, NORM: tl.constexpr,
    PAGED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one row, all of queries, of keys or of values: x cos + (-x2, x1) sin, each product rounded.

    A head's value with a number that is not finite becomes 0, and its key NaN, as in `store_rows`.
    """
    node = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    batch = tl.program_id(2).to(tl.int64)
    h = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, HALF_PAD)[None, :]
    HALF: tl.constexpr = DIM // 2
    inside = (d < HALF) & (h >= 0)
    every = h * 0 + d  # angles as wide as the heads: their loads need no other layout
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.load(start + batch) + node
    at = row + h * 0
    kept = inside & (at >= 0) & (at < capacity)
    page, row = place_of(row, (row >= 0) & (row < capacity), batch, block_table, table_b, PAGED)
    # where the heads come from, and where they go to
    if first < heads:
        source = query + batch * query_b + node * query_n + first * DIM
        target = output + ((batch * nodes + node) * heads + first) * DIM
        target_h = tl.full([], DIM, tl.int64)
        weight = query_weight
        kept = inside
    elif first < heads + kv_heads:
        head = (first - heads).to(tl.int64)
        source = key + batch * key_b + node * key_n + head * DIM
        target = key_cache + page * key_cache_b + head * key_cache_h + row * key_cache_s
        target_h = tl.full([], 1, tl.int64) * key_cache_h
        weight = key_weight
    else:
        head = (first - heads - kv_heads).to(tl.int64)
        source = value + batch * value_b + node * value_n + head * DIM
        target = value_cache + page * value_cache_b + head * value_cache_h + row * value_cache_s
        target_h = tl.full([], 1, tl.int64) * value_cache_h
        weight = key_weight
    x1 = tl.load(source + h * DIM + d, mask=inside, other=0.0)
    x2 = tl.load(source + h * DIM + HALF + d, mask=inside, other=0.0)
    if first < heads + kv_heads:
        type: tl.constexpr = output.dtype.element_ty
        if NORM:
            a, b = x1.to(tl.float32), x2.to(tl.float32)
            scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / DIM + eps)[:, None]
            w1 = tl.load(weight + every, mask=inside, other=0.0).to(tl.float32)
            w2 = tl.load(weight + HALF + every, mask=inside, other=0.0).to(tl.float32)
            x1 = (w1 * (a * scale).to(type).to(tl.float32)).to(type)
            x2 = (w2 * (b * scale).to(type).to(tl.float32)).to(type)
        if TABLE:
            position = tl.load(positions + batch * positions_b + node * positions_n)
            cos += position * cos_n
            sin += position * sin_n
        else:
            cos += batch * cos_b + node * cos_n
            sin += batch * sin_b + node * sin_n
        c1 = tl.load(cos + every, mask=inside, other=0.0).to(tl.float32)
        c2 = tl.load(cos + HALF + every, mask=inside, other=0.0).to(tl.float32)
        s1 = tl.load(sin + every, mask=inside, other=0.0).to(tl.float32)
        s2 = tl.load(sin + HALF + every, mask=inside, other=0.0).to(tl.float32)
        a, b = x1.to(tl.float32), x2.to(tl.float32)
        x1 = ((a * c1).to(type).to(tl.float32) - (b * s1).to(type).to(tl.float32)).to(type)
        x2 = ((b * c2).to(type).to(tl.float32) + (a * s2).to(type).to(tl.float32)).to(type)
    if first >= heads:
        head = first - heads
        if first >= heads + kv_heads:
            head -= kv_heads
        source = value + batch * value_b + node * value_n + head.to(tl.int64) * DIM
        v1 = tl.load(source + h * DIM + d, mask=inside, other=0.0).to(tl.float32)
        v2 = tl.load(source + h * DIM + HALF + d, mask=inside, other=0.0).to(tl.float32)
        unsound = tl.sum(((v1 - v1) + (v2 - v2) != 0).to(tl.int32), 1)[:, None] > 0
        instead = tl.where(first < heads + kv_heads, float("nan"), 0.0).to(x1.dtype)
        x1 = tl.where(unsound, instead, x1)
        x2 = tl.where(unsound, instead, x2)
    tl.store(target + h * target_h + d, x1, mask=kept)
    tl.store(target + h * target_h + HALF + d, x2, mask=kept)


def rotate_plan(
    *, batch: int, nodes: int, heads: int, kv_heads: int, dim: int, table: bool, norm: bool, paged: bool, arch: int
) -> Plan:
    """Blocks depend on the heads alone: a row's norms are summed in one order beside any number of others."""
    block = math.gcd(heads, kv_heads, 8)
    half = next_power_of_2(dim // 2)
    return Plan(
        grid=(nodes, (heads + 2 * kv_heads) // block, batch),
        constants={
            "DIM": dim, "HALF_PAD": half, "HEADS": block, "TABLE": table, "NORM": norm, "PAGED": paged,
            "PDL": arch >= 90,
        },
        options={"num_warps": min(max(block * half // 256, 1), 4), "enable_fp_fusion": False}
        | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _launch(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, key_cache: Tensor, value_cache: Tensor,
    start: Tensor, positions: Tensor | None, norms: HeadNorms | None, block_table: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, nodes, width = query.shape
    kv_heads, capacity, dim = key_cache.shape[1:]
    heads, pages = width // dim, start
    if block_table is not None:
        pages, capacity = block_table, PAGE * block_table.shape[1]
    plan = rotate_plan(
        batch=batch, nodes=nodes, heads=heads, kv_heads=kv_heads, dim=dim, table=positions is not None,
        norm=norms is not None, paged=block_table is not None, arch=architecture(query.device),
    )  # fmt: skip
    query, key, value, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, cos, sin))
    output = query.new_empty(batch, nodes, heads, dim)
    index = start if positions is None else positions.expand(batch, nodes)
    weights = (cos, cos) if norms is None else (norms.query.contiguous(), norms.key.contiguous())
    if positions is None:
        rows = [x.expand(batch, nodes, dim) for x in (cos, sin)]
        steps = [step for x in rows for step in x.stride()[:2]]
    else:
        steps = [0, cos.stride(0), 0, sin.stride(0)]
    plan.launch(
        rotate_kernel, query, key, value, cos, sin, key_cache, value_cache, start.contiguous(), index, *weights, pages,
        output, *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *steps,
        *((0, 0) if positions is None else index.stride()), *key_cache.stride()[:3], *value_cache.stride()[:3],
        pages.stride(0), nodes, heads, kv_heads, capacity, 0.0 if norms is None else norms.eps,
    )  # fmt: skip
    return output.transpose(1, 2)


def _check(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, key_cache: Tensor, value_cache: Tensor,
    start: Tensor, positions: Tensor | None, norms: HeadNorms | None, block_table: Tensor | None,
) -> None:  # fmt: skip
    def fail(message: str) -> None:
        raise ValueError(f"rotate_store: {message}")

    if key_cache.dim() != 4 or value_cache.shape != key_cache.shape or key_cache.shape[3] % 2:
        fail(
            f"key_cache and value_cache must both be [B, KV, S, D] with an even D, got {tuple(key_cache.shape)} and "
            f"{tuple(value_cache.shape)}"
        )
    batch, kv_heads, capacity, dim = key_cache.shape
    if block_table is not None:
        batch, capacity = len(block_table), PAGE * block_table.shape[-1]
        check_table("rotate_store", block_table, key_cache, batch)
    if query.dim() != 3 or query.shape[0] != batch or query.shape[2] % (kv_heads * dim) or not query.shape[2]:
        fail(f"query must be [{batch}, N, H * {dim}], H a multiple of {kv_heads}, got {tuple(query.shape)}")
    nodes = query.shape[1]
    if key.shape != (batch, nodes, kv_heads * dim) or value.shape != key.shape or not 1 <= nodes <= capacity:
        fail(
            f"key and value must be [{batch}, {nodes}, {kv_heads * dim}] of 1 to {capacity} rows, got "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    tensors = (query, key, value, cos, sin, key_cache, value_cache, *(norms[:2] if norms else ()))
    if query.dtype not in DTYPES or any(x.dtype != query.dtype for x in tensors):
        fail(f"all but start and positions must share one float dtype, got {[str(x.dtype) for x in tensors]}")
    if start.shape != (batch,) or start.dtype != torch.int64:
        fail(f"start must be int64 [{batch}], got {start.dtype} {list(start.shape)}")
    if positions is None:
        fits = cos.dim() == 3 and cos.shape[0] in (1, batch) and cos.shape[1:] == (nodes, dim)
        wanted = f"[{batch} or 1, {nodes}, {dim}]"
    else:
        fits, wanted = cos.dim() == 2 and cos.shape[1] == dim, f"[T, {dim}]"
        if positions.shape not in ((batch, nodes), (batch, 1)) or positions.dtype != torch.int64:
            fail(f"positions must be int64 [{batch}, {nodes} or 1], got {positions.dtype} {list(positions.shape)}")
    if not fits or sin.shape != cos.shape:
        fail(f"cos and sin must be {wanted}, got {tuple(cos.shape)} and {tuple(sin.shape)}")
    if norms is not None and (norms.query.shape != (dim,) or norms.key.shape != (dim,)):
        fail(f"norms must be weights [{dim}], got {tuple(norms.query.shape)} and {tuple(norms.key.shape)}")


def rotate_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    start: Tensor,
    *,
    positions: Tensor | None = None,
    norms: HeadNorms | None = None,
    block_table: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Rotate the heads of new queries and keys, x cos + (-x2, x1) sin with halves x1 and x2 of a head, and write keys
    and values into one layer's cache, from row start[b] on, in place.

    Every product is rounded to the dtype before the sum, as stock modules do. A row's bits do not depend on the rows
    beside it.

    Args:
        query: [B, N, H * D], float16, bfloat16 or float32; parts of wider rows, as a fused projection leaves them.
        key, value: [B, N, KV * D].
        cos, sin: [B or 1, N, D] of the rows, or with `positions` tables [T, D].
        key_cache, value_cache: [B, KV, S, D], or with a block table pages [P, KV, 64, D]; views of a larger buffer
            with a contiguous last dimension.
        start: [B] int64, from 0 to S - N. A row outside the cache is not written by the kernel.
        positions: [B, N or 1] int64 below T: the rows' places in the tables.
        norms: weights of RMS norms, one for a query's and one for a key's head, applied before.
        block_table: [B, T] int32, as in `store_rows`.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        The rotated queries [B, H, N, D], a view of rows [B, N, H, D].

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: RoFormer (arXiv 2104.09864) in the form of halves that transformers uses.
    """
    tensors = (query, key, value, cos, sin, key_cache, value_cache, start)
    _check(*tensors, positions, norms, block_table)
    others = (*(norms[:2] if norms else ()), *(x for x in (positions, block_table) if x is not None))
    if choose_backend("rotate_store", backend, *tensors, *others) == "torch":
        return reference_layer.rotate_store(*tensors, positions=positions, norms=norms, block_table=block_table)
    if key_cache.stride(-1) != 1 or value_cache.stride(-1) != 1:
        raise ValueError(
            "rotate_store: the last dimension of key_cache and value_cache must be contiguous, got strides "
            f"{key_cache.stride()} and {value_cache.stride()}"
        )
    return _launch(*tensors, positions, norms, block_table)
