"""Attention of the nodes of a token tree over a cached prefix and their own ancestors."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl

__all__ = ["tree_attention"]

LOG2_E = 1.4426950408889634


@jit
def _attend(q, k, v, mixed, peak, total, scale, visible, MASKED: tl.constexpr):
    """One block of keys of the online softmax, in base 2."""
    s = tl.dot(q, k, input_precision="ieee") * scale
    if MASKED:
        s = tl.where(visible, s, -1.0e30)
    new_peak = tl.maximum(peak, tl.max(s, 1))
    shrink = tl.math.exp2(peak - new_peak)
    p = tl.math.exp2(s - new_peak[:, None])
    if MASKED:
        p = tl.where(visible, p, 0.0)
    total = total * shrink + tl.sum(p, 1)
    mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
    return mixed, new_peak, total


@jit
def split_kernel(
    query, key, value, prefix_length, ancestors, output, partial, partial_lse, scale,
    query_b, query_h, query_n, key_b, key_h, key_s, value_b, value_h, value_s, ancestors_b, ancestors_n, ancestors_w,
    nodes, capacity, kv_heads,
    WORDS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """o[n] = sum_j softmax_j(scale * q[n].k[j]) v[j] over j < L or bit (j - L) of ancestors[n], for one slice of j.

    Row r of a program is node r // GROUP under head r % GROUP of one key-value head, so a group reads its keys once.
    The work is a list of units: whole blocks of KEYS prefix keys (no mask), the rest of the prefix, then the tree, both
    in blocks of TAIL keys. Every split takes an equal run of units, whatever L is. With more than one split the slice's
    own softmax goes to `partial` together with its log-sum-exp, and `combine_kernel` joins them.
    """
    split = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)  # int64: a cache can hold more than 2**31 elements
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(prefix_length + batch), capacity).to(tl.int32)
    blocks = length // KEYS
    rest = (length - blocks * KEYS + TAIL - 1) // TAIL
    units = blocks + rest + WORDS * 64 // TAIL
    share = (units + SPLITS - 1) // SPLITS
    first = split * share
    last = tl.minimum(first + share, units)

    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    node = r // GROUP
    head = kv_head * GROUP + r % GROUP
    real = node < nodes
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    query += batch * query_b + head[:, None] * query_h + node[:, None].to(tl.int64) * query_n + d[None, :]
    q = tl.load(query, mask=real[:, None] & in_dim[None, :], other=0.0)
    key += batch * key_b + kv_head * key_h
    value += batch * value_b + kv_head * value_h
    ancestors += batch * ancestors_b + node * ancestors_n

    mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
    peak = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    n = tl.arange(0, KEYS)
    k_block = key + (first * KEYS).to(tl.int64) * key_s
    v_block = value + (first * KEYS).to(tl.int64) * value_s
    k_offset = n[None, :] * key_s + d[:, None]
    v_offset = n[:, None] * value_s + d[None, :]
    for _ in tl.range(first, tl.minimum(last, blocks), num_stages=STAGES):
        if DIM == DIM_PAD:
            k = tl.load(k_block + k_offset)
            v = tl.load(v_block + v_offset)
        else:
            k = tl.load(k_block + k_offset, mask=in_dim[:, None], other=0.0)
            v = tl.load(v_block + v_offset, mask=in_dim[None, :], other=0.0)
        mixed, peak, total = _attend(q, k, v, mixed, peak, total, scale, real, False)
        k_block += KEYS * key_s
        v_block += KEYS * value_s

    n = tl.arange(0, TAIL)
    k_offset = n[None, :] * key_s + d[:, None]
    v_offset = n[:, None] * value_s + d[None, :]
    for unit in tl.range(tl.maximum(first, blocks) - blocks, last - blocks, num_stages=1):
        tree = unit >= rest
        column = (unit - rest) * TAIL  # of the tree
        start = tl.where(tree, length + column, blocks * KEYS + unit * TAIL)
        inside = n < tl.where(tree, capacity, length) - start
        word = tl.load(ancestors + tl.maximum(column, 0) // 64 * ancestors_w, mask=real, other=0)
        word = tl.where(tree, word, -1)  # every row sees the prefix
        bits = (word >> (tl.maximum(column, 0) % 64)).to(tl.int32)
        visible = ((bits[:, None] >> n[None, :]) & 1 != 0) & inside[None, :]
        k = tl.load(key + start.to(tl.int64) * key_s + k_offset, mask=inside[None, :] & in_dim[:, None], other=0.0)
        # 0 * NaN = NaN: a row that no node sees may hold anything, so it is not even read
        # Reduced as words and tested in 64 bits, unlike `visible`: LLVM would put `n` of both into one vector, where
        # Triton 3.6 overflows one into the other (leaky_vectors in tests/kernels/test_compile.py)
        seen = ((tl.reduce_or(word, 0) >> (tl.maximum(column, 0) % 64 + n)) & 1 != 0) & inside
        v = tl.load(value + start.to(tl.int64) * value_s + v_offset, mask=seen[:, None] & in_dim[None, :], other=0.0)
        mixed, peak, total = _attend(q, k, v, mixed, peak, total, scale, visible, True)

    sees = total > 0.0
    safe = tl.where(sees, total, 1.0)
    mixed = mixed / safe[:, None]
    row = (batch * nodes + node) * (kv_heads * GROUP) + head
    if SPLITS == 1:
        tl.store(
            output + row[:, None] * DIM + d[None, :],
            mixed.to(output.dtype.element_ty),
            mask=real[:, None] & in_dim[None, :],
        )
    else:
        tl.store(partial_lse + row * SPLITS + split, peak + tl.math.log2(safe), mask=real)
        partial += (row[:, None] * SPLITS + split) * DIM + d[None, :]
        tl.store(partial, mixed.to(partial.dtype.element_ty), mask=(real & sees)[:, None] & in_dim[None, :])


@jit
def combine_kernel(
    partial, partial_lse, output,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """o = sum_s 2**(lse[s] - m) o[s] / sum_s 2**(lse[s] - m), m = max_s lse[s], for one row."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS_PAD)
    d = tl.arange(0, DIM_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
    lse = tl.load(partial_lse + row * SPLITS + s, mask=s < SPLITS, other=-1.0e30)
    used = lse > -1.0e29  # an empty split wrote nothing
    weight = tl.where(used, tl.math.exp2(lse - tl.max(lse, 0)), 0.0)
    weight = weight / tl.maximum(tl.sum(weight, 0), 1.0e-30)
    part = tl.load(
        partial + (row * SPLITS + s[:, None]) * DIM + d[None, :], mask=used[:, None] & (d < DIM)[None, :], other=0.0
    )
    mixed = tl.sum(part.to(tl.float32) * weight[:, None], 0)
    tl.store(output + row * DIM + d, mixed.to(output.dtype.element_ty), mask=d < DIM)


class Blocks(NamedTuple):
    """Block sizes of `split_kernel`."""

    rows: int  # node-head pairs of a program
    keys: int  # prefix keys of a step
    stages: int  # steps in flight
    warps: int
    programs: int  # that run at the same time on about 130 multiprocessors: how often to split


def choose_blocks(*, rows: int, dim: int, dtype: torch.dtype, arch: int) -> Blocks:
    """For `rows` node-head pairs of one key-value head, such that nothing spills (tests/kernels/test_compile.py)."""
    rows, dim = max(next_power_of_2(rows), 16), next_power_of_2(dim)
    if dtype == torch.float32:  # no tensor cores at full precision: small blocks, unrolled by the compiler
        return Blocks(16, 16 if dim > 64 else 32, 1, 4 if dim <= 128 else 8, 256)
    rows = 16 if rows <= 16 else max(rows, 64)
    if dim > 128:
        return Blocks(16, 64, 1, 4, 256)
    if arch != 90:  # no wgmma: operands pass through registers
        return Blocks(min(rows, 64), 64, 2, 8 if dim > 64 else 4, 256)
    if rows > 64:
        return Blocks(128, 64, 3, 8, 128)
    return Blocks(rows, 64, 3, 4, 256)


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
    rows, keys, stages, warps, programs = choose_blocks(rows=nodes * group, dim=dim, dtype=dtype, arch=arch)
    tiles = -(-nodes * group // rows)
    splits = max(1, min(programs // (batch * kv_heads * tiles), capacity // (2 * keys), 32))
    return Plan(
        grid=(splits, batch * kv_heads, tiles),
        constants={
            "WORDS": words, "GROUP": group, "DIM": dim, "DIM_PAD": next_power_of_2(max(dim, 16)), "SPLITS": splits,
            "ROWS": rows, "KEYS": keys, "TAIL": min(keys, 32), "STAGES": stages, "PDL": arch >= 90,
        },
        options={"num_warps": warps, "num_stages": stages} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def combine_plan(*, rows: int, splits: int, dim: int, arch: int) -> Plan:
    dim_pad, splits_pad = next_power_of_2(max(dim, 16)), next_power_of_2(splits)
    return Plan(
        grid=(rows,),
        constants={"DIM": dim, "DIM_PAD": dim_pad, "SPLITS": splits, "SPLITS_PAD": splits_pad, "PDL": arch >= 90},
        options={"num_warps": 4 if splits_pad * dim_pad > 1024 else 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


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
    output = query.new_empty(batch, nodes, heads, dim)
    partial, lse = output, output
    if splits > 1:
        partial = query.new_empty(batch, nodes, heads, splits, dim)
        lse = query.new_empty(batch, nodes, heads, splits, dtype=torch.float32)
    plan.launch(
        split_kernel, query, key, value, prefix_length, ancestors, output, partial, lse, scale * LOG2_E,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *ancestors.stride(), nodes, capacity, kv_heads,
    )  # fmt: skip
    if splits > 1:
        combine = combine_plan(rows=batch * nodes * heads, splits=splits, dim=dim, arch=arch)
        combine.launch(combine_kernel, partial, lse, output)
    return output


@_launch.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    batch, heads, nodes, dim = query.shape
    return query.new_empty(batch, nodes, heads, dim)


def _check(query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"tree_attention: {message}")

    if query.dim() != 4 or key.dim() != 4:
        fail(f"query must be [B, H, N, D] and key [B, KV, S, D], got {tuple(query.shape)} and {tuple(key.shape)}")
    batch, heads, nodes, dim = query.shape
    if key.shape != value.shape:
        fail(f"key and value must have one shape, got {tuple(key.shape)} and {tuple(value.shape)}")
    if key.shape[0] != batch or key.shape[3] != dim:
        fail(f"key must be [{batch}, KV, S, {dim}] like the query, got {tuple(key.shape)}")
    if heads % key.shape[1]:
        fail(f"query heads must be a multiple of key-value heads, got {heads} and {key.shape[1]}")
    if not query.dtype.is_floating_point or key.dtype != query.dtype or value.dtype != query.dtype:
        fail(f"query, key and value must share one float dtype, got {query.dtype}, {key.dtype} and {value.dtype}")
    if prefix_length.shape != (batch,) or prefix_length.dtype != torch.int64:
        fail(f"prefix_length must be int64 [{batch}], got {prefix_length.dtype} {tuple(prefix_length.shape)}")
    if ancestors.dim() != 3 or ancestors.shape[:2] != (batch, nodes) or ancestors.dtype != torch.int64:
        fail(f"ancestors must be int64 [{batch}, {nodes}, W], got {ancestors.dtype} {tuple(ancestors.shape)}")


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
