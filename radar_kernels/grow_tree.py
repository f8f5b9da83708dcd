"""One level added to a draft tree: its candidates, its beam, and the hidden states that the beam extends."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference import TopkConfidence
from radar_kernels.reference_tree import TreeBuffers

__all__ = ["TreeBuffers", "grow_tree"]


@jit
def grow_kernel(
    candidate_scores, candidate_tokens, level_scores, level_indices, hidden,
    scores, tokens, parents, beam_scores, beam_tokens, beam_slots, beam_ancestors, calls, beam_hidden, alive,
    hidden_b, hidden_r,
    SLOTS: tl.constexpr, SLOTS_PAD: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, LEVEL: tl.constexpr,
    LEVEL_PAD: tl.constexpr, WORDS: tl.constexpr, WORDS_PAD: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
    FIRST: tl.constexpr, MASKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program 0 writes the tree; each other one copies BLOCK columns of the hidden state of one beam node's parent."""
    part = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if MASKED:  # noqa: SIM102  # a test at compile time, and one at run time
        if tl.load(alive + batch) == 0:
            return
    if part == 0:
        c = tl.arange(0, LEVEL_PAD)
        i = tl.arange(0, K_PAD)
        w = tl.arange(0, WORDS_PAD)[None, :]
        child = c < LEVEL
        real = i < K
        score = tl.load(candidate_scores + batch * LEVEL + c, mask=child)
        token = tl.load(candidate_tokens + batch * LEVEL + c, mask=child)
        index = tl.load(level_indices + batch * K + i, mask=real, other=0)
        index = tl.minimum(index, LEVEL - 1)  # if scores were NaN, stay in bounds
        beam_score = tl.load(level_scores + batch * K + i, mask=real)
        beam_token = tl.load(candidate_tokens + batch * LEVEL + index, mask=real)
        if FIRST:
            depth = batch * 0
            offset = batch * 0
            parent = tl.full([LEVEL_PAD], -1, tl.int64)
            seen = tl.full([K_PAD, WORDS_PAD], 0, tl.int64)
        else:
            depth = tl.load(calls + batch)
            offset = K + (depth - 1) * (K * K)
            parent = tl.load(beam_slots + batch * K + c // K, mask=child)
            above = (batch * K + index // K)[:, None] * WORDS + w
            seen = tl.load(beam_ancestors + above, mask=real[:, None] & (w < WORDS), other=0)
        column = depth * K + i
        own = tl.full([K_PAD], 1, tl.int64) << (column % 64)
        seen |= tl.where(w == (column // 64)[:, None], own[:, None], 0)
        tl.debug_barrier()  # the old beam is read before the new one overwrites it
        slot = offset + c
        written = child & (slot < SLOTS)
        tl.store(scores + batch * SLOTS + slot, score, mask=written)
        tl.store(tokens + batch * SLOTS + slot, token, mask=written)
        tl.store(parents + batch * SLOTS + slot, parent, mask=written)
        tl.store(beam_scores + batch * K + i, beam_score, mask=real)
        tl.store(beam_tokens + batch * K + i, beam_token, mask=real)
        tl.store(beam_slots + batch * K + i, offset + index, mask=real)
        tl.store(beam_ancestors + (batch * K + i)[:, None] * WORDS + w, seen, mask=real[:, None] & (w < WORDS))
        tl.store(calls + batch, depth + 1)
        if FIRST:
            s = tl.arange(0, SLOTS_PAD)
            empty = tl.full([SLOTS_PAD], -float("inf"), tl.float32)
            tl.store(scores + batch * SLOTS + s, empty, mask=(s >= LEVEL) & (s < SLOTS))
    else:
        blocks: tl.constexpr = (HIDDEN + BLOCK - 1) // BLOCK
        node = (part - 1) // blocks
        h = (part - 1) % blocks * BLOCK + tl.arange(0, BLOCK)
        row = batch * 0
        if not FIRST:
            row = tl.minimum(tl.load(level_indices + batch * K + node), LEVEL - 1) // K
        state = tl.load(hidden + batch * hidden_b + row * hidden_r + h, mask=h < HIDDEN)
        tl.store(beam_hidden + (batch * K + node) * HIDDEN + h, state, mask=h < HIDDEN)


def grow_plan(*, batch: int, k: int, slots: int, words: int, hidden: int, first: bool, masked: bool, arch: int) -> Plan:
    level = k if first else k * k
    block = min(next_power_of_2(hidden), 1024)
    return Plan(
        grid=(1 + k * -(-hidden // block), batch),
        constants={
            "SLOTS": slots, "SLOTS_PAD": next_power_of_2(slots), "K": k, "K_PAD": next_power_of_2(k),
            "LEVEL": level, "LEVEL_PAD": next_power_of_2(level), "WORDS": words, "WORDS_PAD": next_power_of_2(words),
            "HIDDEN": hidden, "BLOCK": block, "FIRST": first, "MASKED": masked, "PDL": arch >= 90,
        },
        options={"num_warps": 4} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op(
    "radar_kernels::grow_tree",
    mutates_args=(
        "scores", "tokens", "parents", "beam_scores", "beam_tokens", "beam_slots", "beam_ancestors", "calls",
        "beam_hidden",
    ),
)  # fmt: skip
def _launch(
    candidate_scores: Tensor, candidate_tokens: Tensor, level_scores: Tensor, level_indices: Tensor, hidden: Tensor,
    scores: Tensor, tokens: Tensor, parents: Tensor, beam_scores: Tensor, beam_tokens: Tensor, beam_slots: Tensor,
    beam_ancestors: Tensor, calls: Tensor, beam_hidden: Tensor, alive: Tensor | None, first: bool,
) -> None:  # fmt: skip
    batch, k, words = beam_ancestors.shape
    plan = grow_plan(
        batch=batch, k=k, slots=scores.shape[1], words=words, hidden=hidden.shape[2], first=first,
        masked=alive is not None,
        arch=architecture(scores.device),
    )  # fmt: skip
    plan.launch(
        grow_kernel, candidate_scores, candidate_tokens, level_scores, level_indices, hidden, scores, tokens, parents,
        beam_scores, beam_tokens, beam_slots, beam_ancestors, calls, beam_hidden, calls if alive is None else alive,
        *hidden.stride()[:2],
    )  # fmt: skip


@_launch.register_fake
def _(
    candidate_scores: Tensor, candidate_tokens: Tensor, level_scores: Tensor, level_indices: Tensor, hidden: Tensor,
    scores: Tensor, tokens: Tensor, parents: Tensor, beam_scores: Tensor, beam_tokens: Tensor, beam_slots: Tensor,
    beam_ancestors: Tensor, calls: Tensor, beam_hidden: Tensor, alive: Tensor | None, first: bool,
) -> None:  # fmt: skip
    pass


def _check(level: TopkConfidence, hidden: Tensor, tree: TreeBuffers, alive: Tensor | None, first: bool) -> None:
    if tree.scores.dim() != 2 or tree.beam_ancestors.dim() != 3 or hidden.dim() != 3:
        raise ValueError(
            f"grow_tree: scores must be [B, C], beam_ancestors [B, k, W] and hidden [B, R, H], got "
            f"{tuple(tree.scores.shape)}, {tuple(tree.beam_ancestors.shape)} and {tuple(hidden.shape)}"
        )
    (batch, slots), (_, k, words), size = tree.scores.shape, tree.beam_ancestors.shape, hidden.shape[2]
    rows = 1 if first else k
    if not 1 <= k <= min(16, slots):
        raise ValueError(f"grow_tree: the beam must hold 1 to {min(16, slots)} nodes, got {k}")
    float32, int64 = torch.float32, torch.int64
    expected = (
        ("candidate_scores", level.candidate_scores, float32, (batch, rows, k)),
        ("candidate_tokens", level.candidate_tokens, int64, (batch, rows, k)),
        ("level scores", level.scores, float32, (batch, k)),
        ("level indices", level.indices, int64, (batch, k)),
        ("hidden", hidden, tree.beam_hidden.dtype, (batch, rows, size)),
        ("scores", tree.scores, float32, (batch, slots)),
        ("tokens", tree.tokens, int64, (batch, slots)),
        ("parents", tree.parents, int64, (batch, slots)),
        ("beam_scores", tree.beam_scores, float32, (batch, k)),
        ("beam_tokens", tree.beam_tokens, int64, (batch, k)),
        ("beam_slots", tree.beam_slots, int64, (batch, k)),
        ("beam_ancestors", tree.beam_ancestors, int64, (batch, k, words)),
        ("calls", tree.calls, int64, (batch,)),
        ("beam_hidden", tree.beam_hidden, hidden.dtype, (batch, k, size)),
        *(() if alive is None else (("alive", alive, torch.bool, (batch,)),)),
    )
    for name, tensor, dtype, shape in expected:
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"grow_tree: {name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )


def grow_tree(
    level: TopkConfidence,
    hidden: Tensor,
    tree: TreeBuffers,
    *,
    first: bool,
    alive: Tensor | None = None,
    backend: Backend | None = None,
) -> None:
    """Add one draft level to a tree, in place.

    The first level has slots 0 to k - 1 and hangs off the root; every later one the next k * k, child c of beam node p
    at place k p + c. The new beam are the candidates `level.indices`; beam node i sees what its parent sees and its own
    draft column, calls * k + i with `calls` as it was; its row of `beam_hidden` is its parent's row of `hidden`.

    Args:
        level: the level's candidates, R = 1 row with `first`, else one row for each of the k beam nodes.
        hidden: [B, R, H] the head's states that `level` was drafted from; not a part of `tree.beam_hidden`.
        tree: see `TreeBuffers`; contiguous for the kernel.
        first: start over: what the tree held is forgotten (`scores` is -inf in every other slot, `calls` is 1).
        alive: [B] bool, the rows that grow; the trees of the others stay as they are. None: all grow.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes, strides or devices do not fit, or the backend cannot run here.

    Source: the expansion of EAGLE-2's dynamic tree (arXiv 2406.16858, section 4), kept by EAGLE-3 (2503.01840).
    """
    _check(level, hidden, tree, alive, first)
    mask = () if alive is None else (alive,)
    if choose_backend("grow_tree", backend, tree.scores, hidden, *level, *tree[1:], *mask) == "torch":
        return reference_tree.grow_tree(level, hidden, tree, first=first, alive=alive)
    for name, tensor in zip(TreeBuffers._fields, tree, strict=True):
        if not tensor.is_contiguous():
            raise ValueError(f"grow_tree: {name} is written in place and must be contiguous, got {tensor.stride()}")
    if hidden.stride(-1) != 1:
        hidden = hidden.contiguous()
    _launch(*(x.contiguous() for x in level), hidden, *tree, alive, first)
