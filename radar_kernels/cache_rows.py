"""Rows of a key-value cache, whole or in pages: new ones stored where the device says, accepted ones moved together."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels._pages import check_table, place_of
from radar_kernels.reference_canonical import PAGE

__all__ = ["keep_rows", "store_rows"]


@jit
def store_kernel(
    key_cache, value_cache, key, value, start, block_table,
    key_cache_b, key_cache_h, key_cache_s, value_cache_b, value_cache_h, value_cache_s,
    key_b, key_h, key_n, value_b, value_h, value_n, table_b, nodes, capacity,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr, PAGED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """cache[start + n] = new[n] for ROWS rows of one head, keys and values; NaN and 0 if one is not finite."""
    head = tl.program_id(1).to(tl.int64)  # int64: a cache can hold more than 2**31 elements
    batch = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM_PAD)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    first = tl.load(start + batch)
    new = (n < nodes)[:, None] & (d < DIM)
    node = n[:, None].to(tl.int64)
    k = tl.load(key + batch * key_b + head * key_h + node * key_n + d, mask=new, other=0.0)
    v = tl.load(value + batch * value_b + head * value_h + node * value_n + d, mask=new, other=0.0)
    nothing = (k.to(tl.float32) - k.to(tl.float32)) + (v.to(tl.float32) - v.to(tl.float32))  # or NaN
    sound = tl.sum((nothing != 0).to(tl.int32), 1)[:, None] == 0
    k = tl.where(sound, k, tl.full([ROWS, DIM_PAD], float("nan"), tl.float32).to(k.dtype))
    v = tl.where(sound, v, tl.zeros([ROWS, DIM_PAD], tl.float32).to(v.dtype))
    row = first + node
    real = (n < nodes)[:, None] & (row >= 0) & (row < capacity)
    page, row = place_of(row, real, batch, block_table, table_b, PAGED)
    inside = real & (d < DIM)
    tl.store(key_cache + page * key_cache_b + head * key_cache_h + row * key_cache_s + d, k, mask=inside)
    tl.store(value_cache + page * value_cache_b + head * value_cache_h + row * value_cache_s + d, v, mask=inside)


@jit
def keep_kernel(
    key_cache, value_cache, length, path, count, block_table,
    key_l, key_b, key_h, key_s, value_l, value_b, value_h, value_s, table_b, capacity,
    ROWS: tl.constexpr, ROWS_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """cache[length + i] = cache[length + path[i]] for i < count, keys and values of one layer and head."""
    layer = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    i = tl.arange(0, ROWS_PAD)
    d = tl.arange(0, DIM_PAD)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    first = tl.load(length + batch)
    node = tl.load(path + batch * ROWS + i, mask=i < ROWS, other=0)
    moves = (i < ROWS) & (i < tl.load(count + batch)) & (node != i) & (first + node < capacity)
    moved = moves[:, None] & (d < DIM)
    key_cache += layer * key_l + head * key_h + d
    value_cache += layer * value_l + head * value_h + d
    page, source = place_of((first + node)[:, None], moves[:, None], batch, block_table, table_b, PAGED)
    k = tl.load(key_cache + page * key_b + source * key_s, mask=moved)
    v = tl.load(value_cache + page * value_b + source * value_s, mask=moved)
    tl.debug_barrier()  # every row is read before one is overwritten
    page, target = place_of((first + i)[:, None], moves[:, None], batch, block_table, table_b, PAGED)
    tl.store(key_cache + page * key_b + target * key_s, k, mask=moved)
    tl.store(value_cache + page * value_b + target * value_s, v, mask=moved)


def store_plan(*, batch: int, kv_heads: int, nodes: int, dim: int, paged: bool, arch: int) -> Plan:
    dim_pad = next_power_of_2(dim)
    rows = min(next_power_of_2(nodes), max(1, 1024 // dim_pad))
    return Plan(
        grid=(-(-nodes // rows), kv_heads, batch),
        constants={"DIM": dim, "DIM_PAD": dim_pad, "ROWS": rows, "PAGED": paged, "PDL": arch >= 90},
        options={"num_warps": min(max(rows * dim_pad // 256, 1), 4)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def keep_plan(*, layers: int, batch: int, kv_heads: int, rows: int, dim: int, paged: bool, arch: int) -> Plan:
    rows_pad, dim_pad = next_power_of_2(rows), next_power_of_2(dim)
    return Plan(
        grid=(layers, kv_heads, batch),
        constants={
            "ROWS": rows, "ROWS_PAD": rows_pad, "DIM": dim, "DIM_PAD": dim_pad, "PAGED": paged, "PDL": arch >= 90,
        },
        options={"num_warps": min(max(rows_pad * dim_pad // 1024, 1), 8)}
        | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::store_rows", mutates_args=("key_cache", "value_cache"))
def _launch_store(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, start: Tensor, block_table: Tensor | None
) -> None:
    batch, kv_heads, nodes, dim = key.shape
    paged, arch = block_table is not None, architecture(key.device)
    table, capacity = (start, key_cache.shape[2]) if block_table is None else (block_table, PAGE * block_table.shape[1])
    plan = store_plan(batch=batch, kv_heads=kv_heads, nodes=nodes, dim=dim, paged=paged, arch=arch)
    plan.launch(
        store_kernel, key_cache, value_cache, key, value, start, table, *key_cache.stride()[:3],
        *value_cache.stride()[:3], *key.stride()[:3], *value.stride()[:3], table.stride(0), nodes, capacity,
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::keep_rows", mutates_args=("key_cache", "value_cache"))
def _launch_keep(
    key_cache: Tensor, value_cache: Tensor, length: Tensor, path: Tensor, count: Tensor, block_table: Tensor | None
) -> None:
    layers, _, kv_heads, capacity, dim = key_cache.shape
    table = length
    if block_table is not None:
        table, capacity = block_table, PAGE * block_table.shape[1]
    plan = keep_plan(
        layers=layers, batch=len(length), kv_heads=kv_heads, rows=path.shape[1], dim=dim, paged=block_table is not None,
        arch=architecture(path.device),
    )  # fmt: skip
    plan.launch(
        keep_kernel, key_cache, value_cache, length, path, count, table, *key_cache.stride()[:4],
        *value_cache.stride()[:4], table.stride(0), capacity,
    )  # fmt: skip


@_launch_store.register_fake
def _(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, start: Tensor, block_table: Tensor | None
) -> None:
    pass


@_launch_keep.register_fake
def _(
    key_cache: Tensor, value_cache: Tensor, length: Tensor, path: Tensor, count: Tensor, block_table: Tensor | None
) -> None:
    pass


def _check_caches(op: str, layout: str, key_cache: Tensor, value_cache: Tensor) -> None:
    if key_cache.dim() != layout.count(",") + 1 or value_cache.shape != key_cache.shape:
        raise ValueError(
            f"{op}: key_cache and value_cache must both be {layout}, got {tuple(key_cache.shape)} and "
            f"{tuple(value_cache.shape)}"
        )
    if not key_cache.dtype.is_floating_point or value_cache.dtype != key_cache.dtype:
        raise ValueError(
            f"{op}: key_cache and value_cache must share one float dtype, got {key_cache.dtype} and {value_cache.dtype}"
        )


def _check_integers(op: str, name: str, tensor: Tensor, *shape: int) -> None:
    if tensor.shape != shape or tensor.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be int64 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _check_strides(op: str, key_cache: Tensor, value_cache: Tensor) -> None:
    """The cache is written in place, so it cannot be made contiguous as an input could."""
    if key_cache.stride(-1) != 1 or value_cache.stride(-1) != 1:
        raise ValueError(
            f"{op}: the last dimension of key_cache and value_cache must be contiguous, got strides "
            f"{key_cache.stride()} and {value_cache.stride()}"
        )


def store_rows(
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    *,
    block_table: Tensor | None = None,
    backend: Backend | None = None,
) -> None:
    """Write N new rows of every sequence into one layer's cache, from row start[b] on, in place.

    A head's row that holds NaN or infinity is stored as a key of NaN and a value of 0: whoever sees it has no
    number for a result, as without this, and whoever does not is not touched by it, since a weight of 0 times NaN would
    be NaN: a tree's nodes would spoil their siblings, and the text would not be that of plain decoding.

    Args:
        key_cache, value_cache: [B, KV, S, D], float, or with a block table pages [P, KV, 64, D]; views of a larger
            buffer with a contiguous last dimension.
        key, value: [B, KV, N, D], dtype of the caches; any strides.
        start: [B] int64, from 0 to S - N. The host cannot check it: on a CPU a row outside the cache raises
            RuntimeError, and the kernel does not write it.
        block_table: [B, T] int32, the page of each 64 rows of a sequence, S = 64 T; None: the cache is one piece. Every
            entry has to name a page: what a sequence has none for is written to the one that stands there, which is
            best one that nobody reads.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes, strides or devices do not fit, or the backend cannot run here.
    """
    _check_caches("store_rows", "[B, KV, S, D]", key_cache, value_cache)
    batch, kv_heads, capacity, dim = key_cache.shape
    if block_table is not None:
        batch, capacity = len(block_table), PAGE * block_table.shape[-1]
        check_table("store_rows", block_table, key_cache, batch)
    expected = (batch, kv_heads, key.shape[2] if key.dim() == 4 else 0, dim)
    if key.shape != expected or value.shape != expected or not 1 <= expected[2] <= capacity:
        raise ValueError(
            f"store_rows: key and value must be [{batch}, {kv_heads}, N, {dim}] with N from 1 to {capacity}, got "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.dtype != key_cache.dtype or value.dtype != key_cache.dtype:
        raise ValueError(f"store_rows: key and value must be {key_cache.dtype}, got {key.dtype} and {value.dtype}")
    _check_integers("store_rows", "start", start, batch)
    tables = () if block_table is None else (block_table,)
    if choose_backend("store_rows", backend, key_cache, value_cache, key, value, start, *tables) == "torch":
        return reference.store_rows(key_cache, value_cache, key, value, start, *tables)
    _check_strides("store_rows", key_cache, value_cache)
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    _launch_store(key_cache, value_cache, key, value, start.contiguous(), block_table)


def keep_rows(
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    path: Tensor,
    count: Tensor,
    *,
    block_table: Tensor | None = None,
    backend: Backend | None = None,
) -> None:
    """Move the accepted rows of a tree together, in all layers: row length + i becomes what row length + path[i] was.

    Only i < count[b] move; every other row stays as it is, and so does `length`.

    Args:
        key_cache, value_cache: [L, B, KV, S, D], float, or with a block table pages [L, P, KV, 64, D]; views of a
            larger buffer with a contiguous last dimension.
        length: [B] int64, committed rows; length[b] + path[b, i] is below S.
        path: [B, A] int64, ascending, so path[b, i] >= i. Entries past `count` are not read as rows.
        count: [B] int64, from 0 to A.
        block_table: [B, T] int32 as in `store_rows`. Pages that sequences share are below `length` of each.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes, strides or devices do not fit, or the backend cannot run here.
    """
    _check_caches("keep_rows", "[L, B, KV, S, D]", key_cache, value_cache)
    batch = key_cache.shape[1] if block_table is None else len(block_table)
    if block_table is not None:
        check_table("keep_rows", block_table, key_cache, batch)
    _check_integers("keep_rows", "length", length, batch)
    _check_integers("keep_rows", "count", count, batch)
    if path.dim() != 2 or not 1 <= path.shape[1] <= 32:
        raise ValueError(f"keep_rows: path must be int64 [{batch}, A] with A from 1 to 32, got {tuple(path.shape)}")
    _check_integers("keep_rows", "path", path, batch, path.shape[1])
    tables = () if block_table is None else (block_table,)
    if choose_backend("keep_rows", backend, key_cache, value_cache, length, path, count, *tables) == "torch":
        return reference.keep_rows(key_cache, value_cache, length, path, count, *tables)
    _check_strides("keep_rows", key_cache, value_cache)
    _launch_keep(key_cache, value_cache, length.contiguous(), path.contiguous(), count.contiguous(), block_table)
