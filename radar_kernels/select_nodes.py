"""The best candidates of a draft tree, as the tree that the target verifies."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference_tree import VerifyTree

__all__ = ["VerifyTree", "order_key", "select_nodes", "worst_of_best"]

MAX_SLOTS = 4096
MAX_NODES = 256


@jit
def order_key(score):
    """Integers that order like float32 scores."""
    bits = tl.where(score == 0.0, 0, score.to(tl.int32, bitcast=True))  # -0.0 is no less than 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def worst_of_best(key, low, high, reaching, wanted):
    """Of keys from `low` to `high`, all `reaching` of which are at least `low`, the worst of the best `wanted`, found
    by halving the range until as many as are wanted reach it; `low` if there are no more. Nothing is sorted."""
    while (low < high) & (reaching > wanted):
        middle = (low + high + 1) >> 1
        count = tl.sum((key >= middle.to(tl.int32)).to(tl.int32))
        enough = count >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
        reaching = tl.where(enough, count, reaching)
    return low.to(tl.int32)


@jit
def pick_kernel(
    scores, tokens, parents, root_token, counts, slot_of_node, node_of_slot,
    draft_tokens, node_parents, depths, valid, ancestors,
    SLOTS: tl.constexpr, SLOTS_PAD: tl.constexpr, PICKED: tl.constexpr, NODES_PAD: tl.constexpr, K: tl.constexpr,
    WORDS: tl.constexpr, WORDS_PAD: tl.constexpr, LEVELS: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The PICKED best slots, or as many as `counts` says, in slot order: node n is the n-th of them, and sees itself
    and what its parent sees.

    No slot moves until its node is known.
    """
    LOWEST: tl.constexpr = -0x80000000
    HIGHEST: tl.constexpr = 0x7FFFFFFF
    batch = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SLOTS_PAD)
    n = tl.arange(0, NODES_PAD)
    w = tl.arange(0, WORDS_PAD)[None, :]
    real = s < SLOTS
    scores += batch * SLOTS
    node_of_slot += batch * SLOTS
    slot_of_node += batch * PICKED
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    wanted = (batch * 0 + PICKED).to(tl.int32)
    if SHARED:
        wanted = tl.minimum(tl.load(counts + batch) - 1, wanted)
    score = tl.load(scores + s, mask=real, other=0.0)
    key = order_key(score)
    low = tl.min(tl.where(real, key, HIGHEST)).to(tl.int64)
    key = tl.where(real, key, LOWEST)
    reaching = (low * 0 + SLOTS).to(tl.int32)
    bound = worst_of_best(key, low, tl.max(key).to(tl.int64), reaching, wanted)
    better = real & (key > bound)
    equal = real & (key == bound)
    spare = wanted - tl.sum(better.to(tl.int32))
    picked = better | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
    node = tl.where(picked, tl.cumsum(picked.to(tl.int32), 0), 0)
    tl.store(node_of_slot + s, node, mask=real)
    tl.store(slot_of_node + node - 1, s, mask=picked)
    tl.debug_barrier()  # what follows reads other threads' stores, past the first-level cache

    drafted = (n > 0) & (n <= wanted)
    slot = tl.load(slot_of_node + n - 1, mask=drafted, other=0, cache_modifier=".cg")
    alive = drafted & (tl.load(scores + slot, mask=drafted, other=-float("inf")) > -float("inf"))
    token = tl.load(tokens + batch * SLOTS + slot, mask=alive, other=0)
    above = tl.load(parents + batch * SLOTS + slot, mask=alive, other=-1)
    parent = tl.load(node_of_slot + above, mask=alive & (above >= 0), other=0, cache_modifier=".cg")
    depth = tl.where(alive & (slot >= K), 2 + (slot - K) // (K * K), (n > 0).to(tl.int32))
    inside = n <= PICKED
    first = batch * (PICKED + 1)
    tl.store(draft_tokens + first + n, tl.where(n == 0, tl.load(root_token + batch), token), mask=inside)
    tl.store(node_parents + first + n, parent.to(tl.int64), mask=inside)
    tl.store(depths + first + n, depth.to(tl.int64), mask=inside)
    tl.store(valid + first + n, alive | (n == 0), mask=inside)

    one = tl.full([NODES_PAD], 1, tl.int64)
    wide = n.to(tl.int64)
    seen = tl.where(w == (wide // 64)[:, None], (one << (wide % 64))[:, None], 0)
    seen |= (w == 0).to(tl.int64)  # the root
    current = parent
    steps = 0
    while (tl.max(current) > 0) & (steps < LEVELS):
        at = current.to(tl.int64)
        seen |= tl.where(w == (at // 64)[:, None], (one << (at % 64))[:, None], 0)
        current = tl.gather(parent, current, 0)
        steps += 1
    out = ancestors + (first + n)[:, None] * WORDS + w
    tl.store(out, seen, mask=inside[:, None] & (w < WORDS))


def pick_plan(*, batch: int, slots: int, picked: int, k: int, shared: bool, arch: int) -> Plan:
    slots_pad = max(next_power_of_2(slots), 32)
    words = picked // 64 + 1
    return Plan(
        grid=(batch,),
        constants={
            "SLOTS": slots, "SLOTS_PAD": slots_pad, "PICKED": picked, "NODES_PAD": max(next_power_of_2(picked + 1), 32),
            "K": k, "WORDS": words, "WORDS_PAD": next_power_of_2(words), "LEVELS": 1 + -(-(slots - k) // k**2),
            "SHARED": shared, "PDL": arch >= 90,
        },
        options={"num_warps": min(max(slots_pad // 512, 1), 8)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _outputs(scores: Tensor, total_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, slots = scores.shape
    nodes = min(total_tokens, slots + 1)
    draft_tokens, parents, depths = (scores.new_empty(batch, nodes, dtype=torch.int64) for _ in range(3))
    valid = scores.new_empty(batch, nodes, dtype=torch.bool)
    return draft_tokens, parents, depths, valid, scores.new_empty(batch, nodes, -(-nodes // 64), dtype=torch.int64)


@torch.library.custom_op("radar_kernels::select_nodes", mutates_args=())
def _launch(
    scores: Tensor,
    tokens: Tensor,
    parents: Tensor,
    root_token: Tensor,
    total_tokens: int,
    tree_top_k: int,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, slots = scores.shape
    output = _outputs(scores, total_tokens)
    picked = output[0].shape[1] - 1
    slot_of_node = scores.new_empty(batch, picked, dtype=torch.int32)
    node_of_slot = scores.new_empty(batch, slots, dtype=torch.int32)
    arch, shared = architecture(scores.device), counts is not None
    plan = pick_plan(batch=batch, slots=slots, picked=picked, k=tree_top_k, shared=shared, arch=arch)
    limits = slot_of_node if counts is None else counts
    plan.launch(pick_kernel, scores, tokens, parents, root_token, limits, slot_of_node, node_of_slot, *output)
    return output


@_launch.register_fake
def _(
    scores: Tensor,
    tokens: Tensor,
    parents: Tensor,
    root_token: Tensor,
    total_tokens: int,
    tree_top_k: int,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(scores, total_tokens)


def _check(
    scores: Tensor, tokens: Tensor, parents: Tensor, root_token: Tensor, total_tokens: int, tree_top_k: int,
    counts: Tensor | None,
) -> None:  # fmt: skip
    def fail(message: str) -> None:
        raise ValueError(f"select_nodes: {message}")

    if scores.dim() != 2 or scores.dtype != torch.float32 or not 1 <= scores.shape[1] <= MAX_SLOTS:
        fail(f"scores must be float32 [B, C] with C from 1 to {MAX_SLOTS}, got {scores.dtype} {tuple(scores.shape)}")
    batch, slots = scores.shape
    for name, tensor in (("tokens", tokens), ("parents", parents)):
        if tensor.shape != scores.shape or tensor.dtype != torch.int64:
            fail(f"{name} must be int64 [{batch}, {slots}], got {tensor.dtype} {tuple(tensor.shape)}")
    if root_token.shape != (batch,) or root_token.dtype != torch.int64:
        fail(f"root_token must be int64 [{batch}], got {root_token.dtype} {tuple(root_token.shape)}")
    if not 2 <= total_tokens <= MAX_NODES:
        fail(f"total_tokens must be from 2 to {MAX_NODES}, got {total_tokens}")
    if not 1 <= tree_top_k <= slots:
        fail(f"tree_top_k must be from 1 to {slots}, the number of slots, got {tree_top_k}")
    if counts is not None and (counts.shape != (batch,) or counts.dtype != torch.int32):
        fail(f"counts must be int32 [{batch}], got {counts.dtype} {tuple(counts.shape)}")


def select_nodes(
    scores: Tensor,
    tokens: Tensor,
    parents: Tensor,
    root_token: Tensor,
    *,
    total_tokens: int,
    tree_top_k: int,
    counts: Tensor | None = None,
    backend: Backend | None = None,
) -> VerifyTree:
    """The root and the best `total_tokens - 1` candidates, in slot order, as a tree.

    A child scores no more than its parent, and of equals the lower slot wins, so the choice is closed under parents.
    When fewer candidates exist, invalid nodes that hang off the root with token 0 fill the rest.

    Args:
        scores: [B, C] float32, cumulative log-probabilities; -inf where there is no candidate. C <= 4096.
        tokens: [B, C] int64.
        parents: [B, C] int64, the slot of the parent, lower than the candidate's own; -1: the root.
        root_token: [B] int64.
        total_tokens: 2 to 256, nodes with the root; C + 1 of them if that is less.
        tree_top_k: k. Slots 0 to k - 1 are level 1, and every later level has k * k.
        counts: [B] int32, nodes of each row, 1 to `total_tokens` (`share_nodes`); what is left of N is padding.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        VerifyTree(draft_tokens, parents, depths, valid [B, N], ancestors [B, N, ceil(N / 64)]).

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: reranking of EAGLE-2 (arXiv 2406.16858, section 4), kept by EAGLE-3 (arXiv 2503.01840).
    """
    tensors = scores, tokens, parents, root_token
    _check(*tensors, total_tokens, tree_top_k, counts)
    limits = () if counts is None else (counts,)
    if choose_backend("select_nodes", backend, *tensors, *limits) == "torch":
        return reference_tree.select_nodes(*tensors, total_tokens=total_tokens, tree_top_k=tree_top_k, counts=counts)
    counts = None if counts is None else counts.contiguous()
    return VerifyTree(*_launch(*(tensor.contiguous() for tensor in tensors), total_tokens, tree_top_k, counts))
