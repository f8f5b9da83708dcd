"""Attention whose result for a row depends on the row's own path alone, bit for bit."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
from torch import Tensor

from radar_kernels import reference_canonical
from radar_kernels._canonical_kernels import path_kernel, prefix_kernel
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, next_power_of_2
from radar_kernels.reference_canonical import PAGE, Alike, Paths
from radar_kernels.tree_attention import LOG2_E, check_tensors

__all__ = ["Alike", "Paths", "canonical_attention", "chunk_of"]


JOINED = 4  # rows at a time: 16 bytes a thread of 128 numbers


class Blocks(NamedTuple):
    """Block sizes, of which the result depends on `keys` alone."""

    prefix_rows: int  # node-head pairs of a program of `prefix_kernel`
    prefix_warps: int
    stages: int
    path_rows: int  # heads of a program of `path_kernel`
    path_warps: int
    keys: int  # of a block; divides a page


def choose_blocks(*, rows: int, dim: int, dtype: torch.dtype, arch: int, capacity: int) -> Blocks:
    """For `rows` node-head pairs of a key-value head; one kind of tensor core instruction for a type, a head dimension
    and a card, whatever the number of rows. Of a short cache more programs have to share the work."""
    wide = next_power_of_2(dim) > 128
    if dtype == torch.float32:  # no tensor cores at full precision: small blocks, unrolled by the compiler
        return Blocks(16, 4, 1, 16, 4, 16 if dim > 64 else 32)
    if arch != 90:  # 16 rows an instruction
        return Blocks(16 if wide else 32, 4, 2, 16, 4, 32 if wide else 64)
    if wide:  # wgmma: 64 rows an instruction
        return Blocks(64, 8, 2, 64, 8, 32)
    return Blocks(128, 8, 3, 64, 4, 64) if rows > 64 and capacity > 4096 else Blocks(64, 4, 3, 64, 4, 64)


def chunk_of(position: int) -> int:
    """The chunk of keys that a position of the text belongs to."""
    if position < 4096:
        return position // 256
    return 16 + (position - 4096) // 1024 if position < 16384 else 28 + (position - 16384) // 2048


class Shape(NamedTuple):
    """What the plans depend on."""

    batch: int
    kv_heads: int
    group: int
    nodes: int
    capacity: int
    dim: int
    longest: int  # path

    @property
    def rows(self) -> int:
        return self.batch * self.nodes * self.kv_heads * self.group


class Plans(NamedTuple):
    """Of the two kernels, and how many states they pass on."""

    prefix: Plan
    path: Plan
    chunks: int
    blocks: int


def plans(
    shape: Shape, *, dtype: torch.dtype, arch: int, window: bool, softcap: bool, paged: bool, sink: bool,
    texts: int | None = None, most: int = 0,
) -> Plans:  # fmt: skip
    nodes, batch = (shape.nodes, shape.batch) if texts is None else (most, texts)  # of `prefix_kernel`
    blocks = choose_blocks(rows=nodes * shape.group, dim=shape.dim, dtype=dtype, arch=arch, capacity=shape.capacity)
    options = {"enable_fp_fusion": False} | ({"launch_pdl": True} if arch >= 90 else {})
    dims = {"DIM": shape.dim, "DIM_PAD": next_power_of_2(max(shape.dim, 16)), "PDL": arch >= 90}
    constants = {"GROUP": shape.group, "KEYS": blocks.keys, "WINDOW": window, "SOFTCAP": softcap, "PAGED": paged} | dims
    heads, tiles = shape.batch * shape.kv_heads, -(-shape.group // blocks.path_rows)
    chunks = chunk_of(shape.capacity - 1) + 1
    own = (blocks.keys - 1 + shape.longest + blocks.keys - 1) // blocks.keys
    return Plans(
        Plan(
            (-(-nodes * shape.group // blocks.prefix_rows), batch * shape.kv_heads, chunks),
            constants | {"ROWS": blocks.prefix_rows, "STAGES": blocks.stages, "ALIKE": texts is not None},
            options | {"num_warps": blocks.prefix_warps, "num_stages": blocks.stages},
        ),
        Plan(
            (shape.nodes, heads, tiles),
            constants | {"ROWS": blocks.path_rows, "JOINED": JOINED, "SINK": sink},
            options | {"num_warps": blocks.path_warps},
        ),
        chunks,
        own,
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::canonical_attention", mutates_args=())
def _launch(
    query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, columns: Tensor,
    seen: Tensor, scale: float, window: int, softcap: float, sink: Tensor | None, block_table: Tensor | None,
    starts: Tensor | None, most: int,
) -> Tensor:  # fmt: skip
    batch, heads, nodes, dim = query.shape
    kv_heads, longest = key.shape[1], columns.shape[2]
    capacity = key.shape[2] if block_table is None else block_table.shape[1] * PAGE
    shape = Shape(batch, kv_heads, heads // kv_heads, nodes, capacity, dim, longest)
    prefix, path, chunks, blocks = plans(
        shape, dtype=query.dtype, arch=architecture(query.device), window=window > 0, softcap=softcap > 0.0,
        paged=block_table is not None, sink=sink is not None,
        texts=None if starts is None else len(starts) - 1, most=most,
    )  # fmt: skip
    rows, states = shape.rows, chunks + blocks
    mixed = query.new_empty(states, rows, dim, dtype=torch.float32)
    peak, total = query.new_empty(2, states, rows, dtype=torch.float32)
    output = query.new_empty(batch, nodes, heads, dim)
    table = prefix_length if block_table is None else block_table
    # softcap * tanh(score / softcap), in base 2
    factors = (scale / softcap, softcap * LOG2_E) if softcap > 0.0 else (scale * LOG2_E, 0.0)
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *columns.stride()[:2], table.stride(0))
    found = (peak, total, mixed)
    inputs = (query, key, value, prefix_length, columns, seen, table, *found, *factors, window, *strides)
    inputs += (longest, nodes, capacity, kv_heads, rows, chunks)
    prefix.launch(prefix_kernel, *inputs, prefix_length if starts is None else starts)
    path.launch(path_kernel, *inputs, peak if sink is None else sink, output)
    return output


@_launch.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, columns: Tensor,
    seen: Tensor, scale: float, window: int, softcap: float, sink: Tensor | None, block_table: Tensor | None,
    starts: Tensor | None, most: int,
) -> Tensor:  # fmt: skip
    batch, heads, nodes, dim = query.shape
    return query.new_empty(batch, nodes, heads, dim)


def _check(
    query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, paths: Paths, window: int | None,
    softcap: float | None, sink: Tensor | None, block_table: Tensor | None, alike: Alike | None,
) -> None:  # fmt: skip
    def fail(message: str) -> None:
        raise ValueError(f"canonical_attention: {message}")

    check_tensors("canonical_attention", query, key, value, prefix_length, paged=block_table is not None)
    batch, heads, nodes, _ = query.shape
    columns, lengths = paths
    if columns.dim() != 3 or columns.shape[:2] != (batch, nodes) or columns.dtype != torch.int32:
        fail(f"paths.columns must be int32 [{batch}, {nodes}, P], got {columns.dtype} {tuple(columns.shape)}")
    if lengths.shape != (batch, nodes) or lengths.dtype != torch.int32 or not lengths.is_contiguous():
        fail(f"paths.lengths must be int32 [{batch}, {nodes}], got {lengths.dtype} {tuple(lengths.shape)}")
    if block_table is not None:
        if block_table.dim() != 2 or len(block_table) != batch or block_table.dtype != torch.int32:
            fail(f"block_table must be int32 [{batch}, T], got {block_table.dtype} {tuple(block_table.shape)}")
        if key.shape[2] != PAGE or block_table.stride(1) != 1:
            fail(f"with a block_table key must be pages [P, KV, {PAGE}, D], got {tuple(key.shape)}")
    if alike is not None and (nodes != 1 or alike.starts.dim() != 1 or alike.starts.dtype != torch.int32):
        fail(
            f"with alike query must be [B, H, 1, D] and starts int32 [T + 1], got {tuple(query.shape)}, "
            f"{alike.starts.dtype} {tuple(alike.starts.shape)}"
        )
    if sink is not None and sink.shape != (heads,):
        fail(f"sink must be [{heads}], a score of each head, got {tuple(sink.shape)}")
    if window is not None and window < 1:
        fail(f"window must be a positive number of keys or None, got {window}")
    if softcap is not None and not softcap > 0:
        fail(f"softcap must be positive or None, got {softcap}")


def canonical_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_length: Tensor,
    paths: Paths,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    block_table: Tensor | None = None,
    alike: Alike | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attend from N tree nodes to a cached prefix and their ancestors, each as if its path were a text by itself.

    A node sees the keys j < prefix_length[b], at positions j, and then its path: the cache's rows prefix_length[b] +
    paths.columns[b, n, i] for i < paths.lengths[b, n], at positions prefix_length[b] + i. The softmax goes through them
    in the order of positions, in blocks and chunks whose borders are positions: the same keys and values give the same
    bits, whether a token is decoded alone, in a chain or in any tree, at any place of the cache, beside any other rows.
    Partial results are float32.

    Args:
        query: [B, H, N, D], float16, bfloat16 or float32; any strides with a contiguous last dimension.
        key, value: [B, KV, S, D], the static cache, dtype of `query`, or with a block table pages [P, KV, 64, D]. H is
            a multiple of KV.
        prefix_length: [B] int64, from 0 to S.
        paths: of the nodes, themselves included; see `ancestor_paths`.
        scale: factor on the scores, default D ** -0.5.
        window: keys that a node sees, itself included; None: all of its path.
        softcap: scores become softcap * tanh(score / softcap).
        sink: [H], a score of each head that takes weight from the keys and adds no value (attention sinks).
        block_table: [B, T] int32, the page of each 64 tokens, S = 64 T (see `store_rows`); None: the cache is one
            piece.
        alike: with N = 1, which entries of the batch have one text, whose keys are then read once for all of them; the
            result is the same without. An entry of no text has a prefix of 0.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere, whose bits promise nothing.

    Returns:
        [B, N, H, D], contiguous, dtype of `query`. A node that sees nothing returns 0.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    _check(query, key, value, prefix_length, paths, window, softcap, sink, block_table, alike)
    if scale is None:
        scale = query.shape[3] ** -0.5
    starts, most = (None, 0) if alike is None else alike
    others = [x for x in (sink, block_table, starts) if x is not None]
    if choose_backend("canonical_attention", backend, query, key, value, prefix_length, *paths, *others) == "torch":
        return reference_canonical.canonical_attention(
            query, key, value, prefix_length, paths, scale=scale, window=window, softcap=softcap, sink=sink,
            block_table=block_table,
        )  # fmt: skip
    if query.dtype == torch.float64:
        raise ValueError("canonical_attention: the Triton kernel takes float16, bfloat16 or float32, got torch.float64")
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    paths = Paths(paths.columns.contiguous(), paths.lengths)
    output: Tensor = _launch(
        query,
        key,
        value,
        prefix_length,
        paths.columns,
        paths.lengths,
        scale,
        window or 0,
        softcap or 0.0,
        sink,
        block_table,
        starts,
        most,
    )
    return output
