"""The branch of a verified tree that the target agrees with."""

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
    draft_tokens, parents, valid, target_tokens, path, tokens, accept_length, next_token,
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
    chosen = tl.load(target_tokens + start + branch, mask=a < ROWS, other=0)
    tl.store(path + batch * ROWS + a, branch.to(tl.int64), mask=a < ROWS)
    tl.store(tokens + batch * ROWS + a, chosen, mask=a < ROWS)
    tl.store(accept_length + batch, length.to(tl.int64))
    tl.store(next_token + batch, tl.sum(tl.where(a == length, chosen, 0)))


def accept_plan(*, batch: int, nodes: int, max_accepted: int, arch: int) -> Plan:
    return Plan(
        grid=(batch,),
        constants={
            "NODES": nodes, "NODES_PAD": max(next_power_of_2(nodes), 32), "ROWS": max_accepted,
            "ROWS_PAD": next_power_of_2(max_accepted), "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _outputs(target_tokens: Tensor, max_accepted: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = target_tokens.shape[0]
    shapes = (batch, max_accepted), (batch, max_accepted), (batch,), (batch,)
    path, tokens, accept_length, next_token = (target_tokens.new_empty(shape) for shape in shapes)
    return path, tokens, accept_length, next_token


@torch.library.custom_op("radar_kernels::accept_nodes", mutates_args=())
def _launch(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, max_accepted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, nodes = target_tokens.shape
    output = _outputs(target_tokens, max_accepted)
    plan = accept_plan(batch=batch, nodes=nodes, max_accepted=max_accepted, arch=architecture(target_tokens.device))
    plan.launch(accept_kernel, draft_tokens, parents, valid, target_tokens, *output)
    return output


@_launch.register_fake
def _(
    draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, max_accepted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(target_tokens, max_accepted)


def _check(draft_tokens: Tensor, parents: Tensor, valid: Tensor, target_tokens: Tensor, max_accepted: int) -> None:
    if target_tokens.dim() != 2 or not 1 <= target_tokens.shape[1] <= MAX_NODES:
        raise ValueError(
            f"accept_nodes: target_tokens must be [B, N] with N from 1 to {MAX_NODES}, got {tuple(target_tokens.shape)}"
        )
    if not 2 <= max_accepted <= MAX_ACCEPTED:
        raise ValueError(f"accept_nodes: max_accepted must be from 2 to {MAX_ACCEPTED}, got {max_accepted}")
    shape = target_tokens.shape
    integers = ("draft_tokens", draft_tokens), ("parents", parents), ("target_tokens", target_tokens)
    for name, tensor in integers:
        if tensor.shape != shape or tensor.dtype != torch.int64:
            raise ValueError(
                f"accept_nodes: {name} must be int64 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    if valid.shape != shape or valid.dtype != torch.bool:
        raise ValueError(f"accept_nodes: valid must be bool {list(shape)}, got {valid.dtype} {list(valid.shape)}")


def accept_nodes(
    draft_tokens: Tensor,
    parents: Tensor,
    valid: Tensor,
    target_tokens: Tensor,
    *,
    max_accepted: int,
    backend: Backend | None = None,
) -> Acceptance:
    """Follow the target down a tree while its token is there.

    A node is accepted if it and all its ancestors hold the token that the target chose after their parents. Siblings
    hold different tokens and parents come before children, so the accepted nodes form one ascending branch.

    Args:
        draft_tokens: [B, N] int64, N <= 256; node 0 is the root, whose token does not matter.
        parents: [B, N] int64, node index.
        valid: [B, N] bool, false for padding, which is never accepted.
        target_tokens: [B, N] int64, the token that the target chooses after each node's path; at a node with NO_TOKEN
            (-1) the branch ends, since no draft token equals it.
        max_accepted: A, 2 to 32, nodes of the longest possible branch, the root included.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        Acceptance(path [B, A], tokens [B, A], accept_length [B], next_token [B]), all int64; past `accept_length` the
        path is 0 and `tokens` the target's token after the root.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: greedy tree verification as in EAGLE-2 (arXiv 2406.16858).
    """
    tensors = draft_tokens, parents, valid, target_tokens
    _check(*tensors, max_accepted)
    if choose_backend("accept_nodes", backend, *tensors) == "torch":
        return reference_tree.accept_nodes(*tensors, max_accepted=max_accepted)
    return Acceptance(*_launch(*(tensor.contiguous() for tensor in tensors), max_accepted))
