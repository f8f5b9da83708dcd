"""What a draft call's layer begins with: its rows' embeddings and states, normed side by side, and where they stand."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_layer
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference_layer import Beam, DraftRows
from radar_kernels.rms_norm import DTYPES, MOST_COLUMNS

__all__ = ["Beam", "DraftRows", "draft_rows"]


@jit
def rows_kernel(
    tokens, table, hidden, length, parents, calls, token_weight, hidden_weight, normed, states, positions, start,
    tokens_b, hidden_b, hidden_r, parents_b, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, BEAM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row's half: weight * h / sqrt(mean(h^2) + eps), h its token's embedding or its state, rounded like norms."""
    node = tl.program_id(0)
    half = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    nodes = tl.num_programs(0)
    row = batch * nodes + node
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    weight = token_weight
    if half == 1:
        weight = hidden_weight
    w = tl.load(weight + i, mask=inside, other=0.0)  # which the kernel in front never writes
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if half == 0:
        source = table + tl.maximum(tl.load(tokens + batch * tokens_b + node), 0) * SIZE
        first = tl.load(length + batch)
        position = first + node
        if BEAM:
            depth = tl.load(calls + batch) - 1
            position = first + depth
            first += depth * parents_b
        tl.store(positions + row, position)
        if node == 0:
            tl.store(start + batch, first)
    else:
        from_row = node.to(tl.int64)
        if BEAM:
            from_row = tl.load(parents + batch * parents_b + node)
        source = hidden + batch * hidden_b + from_row * hidden_r
    h = tl.load(source + i, mask=inside, other=0.0)
    if BEAM:  # noqa: SIM102  # a test at compile time, and one at run time
        if half == 1:
            tl.store(states + row * SIZE + i, h, mask=inside)
    wide = h.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    rounded = (wide * scale).to(normed.dtype.element_ty).to(tl.float32)
    tl.store(
        normed + (2 * row + half) * SIZE + i, (w.to(tl.float32) * rounded).to(normed.dtype.element_ty), mask=inside
    )


def rows_plan(*, batch: int, nodes: int, size: int, beam: bool, arch: int) -> Plan:
    block = next_power_of_2(size)
    return Plan(
        grid=(nodes, 2, batch),
        constants={"SIZE": size, "BLOCK": block, "BEAM": beam, "PDL": arch >= 90},
        options={"num_warps": min(max(block // 512, 1), 32), "enable_fp_fusion": False}
        | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def _launch(
    tokens: Tensor, table: Tensor, hidden: Tensor, length: Tensor, token_weight: Tensor, hidden_weight: Tensor,
    eps: float, beam: Beam | None,
) -> DraftRows:  # fmt: skip
    (batch, nodes), size = tokens.shape, table.shape[1]
    plan = rows_plan(batch=batch, nodes=nodes, size=size, beam=beam is not None, arch=architecture(table.device))
    normed = table.new_empty(batch, nodes, 2 * size)
    states = hidden if beam is None else table.new_empty(batch, nodes, size)
    positions, start = length.new_empty(batch, nodes), length.new_empty(batch)
    parents, calls = (tokens, length) if beam is None else (x.contiguous() for x in beam)
    plan.launch(
        rows_kernel, tokens, table, hidden, length, parents, calls, token_weight.contiguous(),
        hidden_weight.contiguous(), normed, states, positions, start, tokens.stride(0), *hidden.stride()[:2],
        parents.shape[1], eps,
    )  # fmt: skip
    return DraftRows(normed, states, positions, start)


def _check(
    tokens: Tensor, table: Tensor, hidden: Tensor, length: Tensor, weights: tuple[Tensor, Tensor], beam: Beam | None
) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"draft_rows: {message}")

    if tokens.dim() != 2 or table.dim() != 2 or not 1 <= table.shape[1] <= MOST_COLUMNS:
        fail(
            f"tokens must be [B, N] and table [V, H] with H from 1 to {MOST_COLUMNS}, got {tuple(tokens.shape)} and "
            f"{tuple(table.shape)}"
        )
    (batch, nodes), size = tokens.shape, table.shape[1]
    width = nodes if beam is None or beam.parents.dim() != 2 else beam.parents.shape[1]
    if hidden.dim() != 3 or hidden.shape[::2] != (batch, size) or (beam is None and hidden.shape[1] != nodes):
        fail(f"hidden must be [{batch}, {'R' if beam else nodes}, {size}], got {tuple(hidden.shape)}")
    if width < nodes:
        fail(f"a beam has {width} nodes, got {nodes} tokens")
    if table.dtype not in DTYPES or any(x.dtype != table.dtype for x in (hidden, *weights)):
        fail(f"table, hidden and weights must share one float dtype, got {table.dtype} and {hidden.dtype}")
    if any(weight.shape != (size,) for weight in weights):
        fail(f"weights must be [{size}], got {[tuple(weight.shape) for weight in weights]}")
    integers = [("tokens", tokens, (batch, nodes)), ("length", length, (batch,))]
    if beam is not None:
        integers += [("parents", beam.parents, (batch, width)), ("calls", beam.calls, (batch,))]
    for name, tensor, shape in integers:
        if tensor.shape != shape or tensor.dtype != torch.int64:
            fail(f"{name} must be int64 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def draft_rows(
    tokens: Tensor,
    table: Tensor,
    hidden: Tensor,
    length: Tensor,
    weights: tuple[Tensor, Tensor],
    eps: float,
    *,
    beam: Beam | None = None,
    backend: Backend | None = None,
) -> DraftRows:
    """The rows of a draft call: N pairs of a token and the state before it.

    Without a beam the pairs follow the `length` committed ones: pair n stands at length + n. With one all are one level
    below the tree's newest but one: at position length + calls - 1, in rows length + (calls - 1) K + n of the cache.

    Args:
        tokens: [B, N] int64; negative ones (NO_TOKEN) count as 0.
        table: embeddings [V, H], contiguous, float16, bfloat16 or float32.
        hidden: [B, N, H], dtype of `table`, with a beam [B, R, H]; pair n has state n, or state `beam.parents[n]`.
        length: [B] int64, pairs committed to the draft's cache.
        weights: of the norms of embeddings and of states, each [H]; on a GPU read early, as in `rms_norm`.
        eps: as in `rms_norm`.
        beam: see `Beam`.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        See `DraftRows`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: the inputs of EAGLE-3's layer (arXiv 2503.01840, section 3.1).
    """
    _check(tokens, table, hidden, length, weights, beam)
    tensors = (tokens, table, hidden, length, *weights, *(beam or ()))
    if choose_backend("draft_rows", backend, *tensors) == "torch":
        return reference_layer.draft_rows(tokens, table, hidden, length, weights, eps, beam=beam)
    tokens, table, hidden = (x if x.stride(-1) == 1 else x.contiguous() for x in (tokens, table, hidden))
    return _launch(tokens, table.contiguous(), hidden, length.contiguous(), *weights, eps, beam)
