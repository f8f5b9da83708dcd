"""The branch of a verified tree that the target agrees with, and all that a round keeps of it but its states."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference_tree import Acceptance

__all__ = ["Acceptance", "accept_nodes"]

MAX_ACCEPTED = 32
MAX_NODES = 256


@jit
def accept_kernel(
    draft_tokens, parents, valid, target_tokens, calls, path, tokens, accept_length, num_tokens, next_token, result,
    seen, words,
    NODES: tl.constexpr, NODES_PAD: tl.constexpr, ROWS: tl.constexpr, ROWS_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """From the root on, go to the child whose token is what the target chose after its parent, while there is one."""
    batch = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, NODES_PAD)
    a = tl.arange(0, ROWS_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    start = batch * NODES
    child = (n > 0) & (n < NODES)
    parent = tl.load(parents + start + n, mask=child, other=0)
    token = tl.load(draft_tokens + start + n, mask=child, other=0)
    real = tl.load(valid + start + n, mask=child, other=0) != 0
    wanted = tl.load(target_tokens + start + parent, mask=child, other=0)
    reached_from = tl.where(child & real & (token == wanted), parent.to(tl.int32), -1)
    branch = tl.full([ROWS_PAD], 0, tl.int32)
    node = tl.min(tl.where(reached_from == 0, n, NODES_PAD))
    length = node * 0
    while node < NODES_PAD:
        length += 1
        branch = tl.where(a == length, node, branch)
        node = tl.min(tl.where((reached_from == node) & (length < ROWS - 1), n, NODES_PAD))
    kept = a < ROWS
    chosen = tl.load(target_tokens + start + branch, mask=kept, other=0)
    made = tl.load(calls + batch)
    drafted = tl.sum((child & real).to(tl.int64))
    tl.store(path + batch * ROWS + a, branch.to(tl.int64), mask=kept)
    tl.store(tokens + batch * ROWS + a, chosen, mask=kept)
    tl.store(accept_length + batch, length.to(tl.int64))
    tl.store(num_tokens + batch, length.to(tl.int64) + 1)
    tl.store(next_token + batch, tl.sum(tl.where(a == length, chosen, 0)))
    result += batch * (ROWS + 3)
    tl.store(result, made)
    tl.store(result + 1, drafted)
    tl.store(result + 2, length.to(tl.int64))
    tl.store(result + 3 + a, chosen, mask=kept)
    bit = tl.full([ROWS_PAD], 1, tl.int32) << (chosen & 31).to(tl.int32)
    tl.atomic_or(seen + batch * words + (chosen >> 5), bit, mask=(a <= length) & kept & (chosen >= 0))


def accept_plan(*, batch: int, nodes: int, max_accepted: int, arch: int) -> Plan:
    return Plan(
        grid=(batch,),
        constants={
            "NODES": nodes, "NODES_PAD": max(next_power_of_2(nodes), 32), "ROWS": max_accepted,
            "ROWS_PAD": next_power_of_2(max_accepted), "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op(
    "radar_kernels::accept_nodes",
    mutates_args=("path", "tokens", "accept_length", "num_tokens", "next_token", "result", "seen"),
)
def _launch(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, calls: Tensor, path: Tensor,
    tokens: Tensor, accept_length: Tensor, num_tokens: Tensor, next_token: Tensor, result: Tensor, seen: Tensor,
) -> None:  # fmt: skip
    batch, nodes = target_tokens.shape
    arch = architecture(target_tokens.device)
    plan = accept_plan(batch=batch, nodes=nodes, max_accepted=path.shape[1], arch=arch)
    plan.launch(
        accept_kernel, draft_tokens, parents, valid, target_tokens, calls, path, tokens, accept_length, num_tokens,
        next_token, result, seen, seen.shape[1],
    )  # fmt: skip


@_launch.register_fake
def _(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, calls: Tensor, path: Tensor,
    tokens: Tensor, accept_length: Tensor, num_tokens: Tensor, next_token: Tensor, result: Tensor, seen: Tensor,
) -> None:  # fmt: skip
    pass


def _check(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, calls: Tensor, into: Acceptance,
    seen: Tensor,
) -> None:  # fmt: skip
    def fail(message: str) -> None:
        raise ValueError(f"accept_nodes: {message}")

    if target_tokens.dim() != 2 or not 1 <= target_tokens.shape[1] <= MAX_NODES:
        fail(f"target_tokens must be [B, N] with N from 1 to {MAX_NODES}, got {tuple(target_tokens.shape)}")
    if into.path.dim() != 2 or not 2 <= into.path.shape[1] <= MAX_ACCEPTED:
        fail(f"path must be [B, A] with A from 2 to {MAX_ACCEPTED}, got {tuple(into.path.shape)}")
    shape, (batch, longest) = target_tokens.shape, (target_tokens.shape[0], into.path.shape[1])
    if seen.dim() != 2 or len(seen) != batch or seen.dtype != torch.int32:
        fail(f"seen must be int32 [{batch}, W], got {seen.dtype} {list(seen.shape)}")
    if valid.shape != shape or valid.dtype != torch.bool:
        fail(f"valid must be bool {list(shape)}, got {valid.dtype} {list(valid.shape)}")
    shapes = {"path": (batch, longest), "tokens": (batch, longest), "result": (batch, longest + 3)}
    expected = [("draft_tokens", draft_tokens, shape), ("parents", parents, shape), ("calls", calls, (batch,))]
    expected += [("target_tokens", target_tokens, shape)]
    expected += [(name, x, shapes.get(name, (batch,))) for name, x in zip(Acceptance._fields, into, strict=True)]
    for name, tensor, wanted in expected:
        if tensor.shape != wanted or tensor.dtype != torch.int64:
            fail(f"{name} must be int64 {list(wanted)}, got {tensor.dtype} {list(tensor.shape)}")


def accept_nodes(
    draft_tokens: Tensor,
    parents: Tensor,
    valid: Tensor,
    target_tokens: Tensor,
    calls: Tensor,
    into: Acceptance,
    seen: Tensor,
    *,
    backend: Backend | None = None,
) -> None:
    """Follow the target down a tree while its token is there, and note, in place, what the round made.

    A node is accepted if it and all its ancestors hold the token that the target chose after their parents. Siblings
    hold different tokens and parents come before children, so the accepted nodes form one ascending branch.

    Args:
        draft_tokens: [B, N] int64, N <= 256; node 0 is the root, whose token does not matter.
        parents: [B, N] int64, node index.
        valid: [B, N] bool, false for padding, which is never accepted.
        target_tokens: [B, N] int64, the token that the target chooses after each node's path; at a node with NO_TOKEN
            (-1) the branch ends, since no draft token equals it.
        calls: [B] int64, what `result` says of the draft calls.
        into: buffers that take the results; A, 2 to 32, is the nodes of the longest possible branch, root included.
        seen: [B, W] int32, the history: gets the bits of the round's tokens, as in `mark_seen`.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes, strides or devices do not fit, or the backend cannot run here.

    Source: greedy tree verification as in EAGLE-2 (arXiv 2406.16858).
    """
    tensors = draft_tokens, parents, valid, target_tokens, calls
    _check(*tensors, into, seen)
    for name, tensor in (*zip(Acceptance._fields, into, strict=True), ("seen", seen)):
        if not tensor.is_contiguous():
            raise ValueError(f"accept_nodes: {name} is written in place and must be contiguous, got {tensor.stride()}")
    if choose_backend("accept_nodes", backend, *tensors, *into, seen) == "torch":
        return reference_tree.accept_nodes(*tensors, into, seen)
    _launch(*(tensor.contiguous() for tensor in tensors), *into, seen)
