"""How many nodes of each tree are verified where all trees of a batch share one budget."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference_tree import Share
from radar_kernels.select_nodes import MAX_NODES, MAX_SLOTS, order_key, worst_of_best

__all__ = ["Share", "share_nodes"]

MAX_BATCH = 64
MAX_TOTAL = 1024


@jit
def share_kernel(
    scores, active, counts, starts, nodes, scores_b, batch, slots, total, most,
    ROWS: tl.constexpr, SLOTS_PAD: tl.constexpr, TOTAL_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """How many candidates of each row are among the best of all, and which node of which tree stands at each place."""
    LOWEST: tl.constexpr = -0x80000000
    HIGHEST: tl.constexpr = 0x7FFFFFFF
    b = tl.arange(0, ROWS)
    s = tl.arange(0, SLOTS_PAD)[None, :]
    i = tl.arange(0, TOTAL_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    live = tl.load(active + b, mask=b < batch, other=0) != 0
    score = tl.load(scores + b[:, None] * scores_b + s, mask=live[:, None] & (s < slots), other=-float("inf"))
    real = score > -float("inf")
    key = order_key(score)
    low = tl.min(tl.where(real, key, HIGHEST)).to(tl.int64)
    key = tl.where(real, key, LOWEST)
    room = total - batch
    bound = worst_of_best(key, low, tl.max(key).to(tl.int64), tl.sum(real.to(tl.int32)), room)
    better = tl.sum((real & (key > bound)).to(tl.int32), 1)
    equal = tl.sum((real & (key == bound)).to(tl.int32), 1)
    spare = room - tl.sum(better) - (tl.cumsum(equal, 0) - equal)  # for a row's equals, behind those of earlier rows
    count = tl.minimum(1 + better + tl.minimum(equal, tl.maximum(spare, 0)), most)
    count = tl.where(b < batch, count, 0)
    end = tl.cumsum(count, 0)
    tl.store(counts + b, count, mask=b < batch)
    tl.store(starts + b, end - count, mask=b < batch)
    tl.store(starts + batch, tl.sum(count))
    behind = (end[None, :] <= i[:, None]) & (b < batch)[None, :]
    row = tl.sum(behind.to(tl.int32), 1)
    node = i - tl.max(tl.where(behind, end[None, :], 0), 1)
    tl.store(nodes + i, tl.where(i < tl.sum(count), row * most + node, -1).to(tl.int64), mask=i < total)


def share_plan(*, batch: int, slots: int, total: int, arch: int) -> Plan:
    rows, slots_pad = next_power_of_2(batch), max(next_power_of_2(slots), 32)
    return Plan(
        grid=(1,),
        constants={"ROWS": rows, "SLOTS_PAD": slots_pad, "TOTAL_PAD": next_power_of_2(total), "PDL": arch >= 90},
        options={"num_warps": min(max(rows * slots_pad // 1024, 4), 16)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def share_nodes(scores: Tensor, active: Tensor, *, total: int, most: int, backend: Backend | None = None) -> Share:
    """Rank the candidates of all trees together, and take the best that a verification of `total` nodes has room for
    beside the roots.

    A child scores no more than its parent, so what is taken of a tree are its best candidates, closed under parents:
    those that `select_nodes` takes with `counts`. Of equals the lower row and slot wins. What a tree has beyond `most`
    is given to no other one.

    Args:
        scores: [B, C] float32, cumulative log-probabilities; -inf where there is no candidate. A part of the slots is
            enough, if the others hold none.
        active: [B] bool, rows that hold a text; of the others the root alone is taken, so that each row has a node.
        total: B to 1,024, nodes in all, with the roots.
        most: 2 to 256, nodes of one tree.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        Share(counts [B], starts [B + 1] int32, nodes [total] int64).

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: reranking of EAGLE-2 (arXiv 2406.16858, section 4), over all rows of a batch.
    """

    def fail(message: str) -> None:
        raise ValueError(f"share_nodes: {message}")

    if scores.dim() != 2 or scores.dtype != torch.float32 or not 1 <= scores.shape[1] <= MAX_SLOTS:
        fail(f"scores must be float32 [B, C] with C from 1 to {MAX_SLOTS}, got {scores.dtype} {tuple(scores.shape)}")
    batch, slots = scores.shape
    if not 1 <= batch <= MAX_BATCH:
        fail(f"scores must be of 1 to {MAX_BATCH} rows, got {batch}")
    if active.shape != (batch,) or active.dtype != torch.bool:
        fail(f"active must be bool [{batch}], got {active.dtype} {tuple(active.shape)}")
    if not batch <= total <= MAX_TOTAL:
        fail(f"total must be from {batch}, the number of roots, to {MAX_TOTAL}, got {total}")
    if not 2 <= most <= MAX_NODES:
        fail(f"most must be from 2 to {MAX_NODES}, got {most}")
    if choose_backend("share_nodes", backend, scores, active) == "torch":
        return reference_tree.share_nodes(scores, active, total=total, most=most)
    scores, active = scores if scores.stride(1) == 1 else scores.contiguous(), active.contiguous()
    share = Share(
        scores.new_empty(batch, dtype=torch.int32),
        scores.new_empty(batch + 1, dtype=torch.int32),
        scores.new_empty(total, dtype=torch.int64),
    )
    plan = share_plan(batch=batch, slots=slots, total=total, arch=architecture(scores.device))
    plan.launch(share_kernel, scores, active, *share, scores.stride(0), batch, slots, total, most)
    return share
