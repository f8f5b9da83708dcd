"""A draft level added to a tree: log-softmax, parent score, top-k of every row, top-k of the level as the new beam."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, next_power_of_2
from radar_kernels._tree_kernels import grow_kernel, scan_kernel
from radar_kernels.reference_tree import TreeBuffers

__all__ = ["TreeBuffers", "grow_tree"]

MAX_K = 16


def segment_size(vocabulary: int) -> int:
    """Balances the maxima (V / size) with the logits that are read twice (k * size)."""
    return 64 if vocabulary <= 65536 else 128


def scan_plan(*, batch: int, rows: int, vocabulary: int, arch: int) -> Plan:
    segment = segment_size(vocabulary)
    segments = next_power_of_2(-(-vocabulary // segment))
    block = min(2048, segments * segment)
    return Plan(
        grid=(segments * segment // block, batch * rows),
        constants={"SEGMENT": segment, "SEGMENTS": segments, "BLOCK": block, "PDL": arch >= 90},
        options={"num_warps": 4} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def grow_plan(
    *,
    batch: int,
    rows: int,
    vocabulary: int,
    k: int,
    slots: int,
    words: int,
    first: bool,
    masked: bool,
    d2t: bool,
    arch: int,
) -> Plan:
    segment = segment_size(vocabulary)
    return Plan(
        grid=(rows, batch),
        constants={
            "ROWS": rows, "K": k, "K_PAD": next_power_of_2(k), "SEGMENT": segment,
            "SEGMENTS": next_power_of_2(-(-vocabulary // segment)), "SLOTS": slots,
            "SLOTS_PAD": next_power_of_2(slots), "LEVEL_PAD": next_power_of_2(rows * k), "WORDS": words,
            "WORDS_PAD": next_power_of_2(words), "D2T": d2t, "FIRST": first, "MASKED": masked, "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op(
    "radar_kernels::grow_tree",
    mutates_args=(
        "scores", "tokens", "parents", "beam_scores", "beam_tokens", "beam_slots", "beam_parents", "beam_ancestors",
        "calls",
    ),
)  # fmt: skip
def _launch(
    logits: Tensor, scores: Tensor, tokens: Tensor, parents: Tensor, beam_scores: Tensor, beam_tokens: Tensor,
    beam_slots: Tensor, beam_parents: Tensor, beam_ancestors: Tensor, calls: Tensor, first: bool, alive: Tensor | None,
    d2t: Tensor | None,
) -> None:  # fmt: skip
    (batch, rows, vocabulary), (_, k, words) = logits.shape, beam_ancestors.shape
    arch = architecture(logits.device)
    scan = scan_plan(batch=batch, rows=rows, vocabulary=vocabulary, arch=arch)
    plan = grow_plan(
        batch=batch, rows=rows, vocabulary=vocabulary, k=k, slots=scores.shape[1], words=words, first=first,
        masked=alive is not None, d2t=d2t is not None, arch=arch,
    )  # fmt: skip
    segments = scan.constants["SEGMENTS"]
    segment_max = logits.new_empty(batch, rows, segments)
    segment_sum = scores.new_empty(batch, rows, segments)
    arrived = logits.new_empty(batch, dtype=torch.int32)  # zeroed by the scan: no state outlives a call
    drafts = logits.new_empty(batch, rows, k, dtype=torch.int32)
    strides = logits.stride()[:2]
    scan.launch(scan_kernel, logits, segment_max, segment_sum, arrived, *strides, rows, vocabulary)
    plan.launch(
        grow_kernel, logits, logits if d2t is None else d2t, logits if alive is None else alive, segment_max,
        segment_sum, arrived, drafts, scores, tokens, parents, beam_scores, beam_tokens, beam_slots, beam_parents,
        beam_ancestors, calls, *strides, vocabulary,
    )  # fmt: skip


@_launch.register_fake
def _(
    logits: Tensor, scores: Tensor, tokens: Tensor, parents: Tensor, beam_scores: Tensor, beam_tokens: Tensor,
    beam_slots: Tensor, beam_parents: Tensor, beam_ancestors: Tensor, calls: Tensor, first: bool, alive: Tensor | None,
    d2t: Tensor | None,
) -> None:  # fmt: skip
    pass


def _check(logits: Tensor, tree: TreeBuffers, first: bool, alive: Tensor | None, d2t: Tensor | None) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"grow_tree: {message}")

    if tree.scores.dim() != 2 or tree.beam_ancestors.dim() != 3:
        fail(
            f"scores must be [B, C] and beam_ancestors [B, k, W], got {tuple(tree.scores.shape)} and "
            f"{tuple(tree.beam_ancestors.shape)}"
        )
    (batch, slots), (_, k, words) = tree.scores.shape, tree.beam_ancestors.shape
    rows, vocabulary = logits.shape[1] if logits.dim() == 3 and not first else 1, logits.shape[-1]
    if not logits.dtype.is_floating_point or logits.dtype == torch.float64 or logits.shape != (batch, rows, vocabulary):
        fail(
            f"logits must be float16, bfloat16 or float32 [{batch}, {1 if first else 'R'}, V], got {logits.dtype} "
            f"{tuple(logits.shape)}"
        )
    if not 1 <= rows <= k:
        fail(f"a beam of {k} nodes has 1 to {k} rows of logits, got {rows}")
    most = min(MAX_K, slots, vocabulary)
    if not 1 <= k <= most:
        fail(f"the beam must hold 1 to {most} nodes, got {k}")
    float32, int64 = torch.float32, torch.int64
    expected = (
        ("scores", tree.scores, float32, (batch, slots)),
        ("tokens", tree.tokens, int64, (batch, slots)),
        ("parents", tree.parents, int64, (batch, slots)),
        ("beam_scores", tree.beam_scores, float32, (batch, k)),
        ("beam_tokens", tree.beam_tokens, int64, (batch, k)),
        ("beam_slots", tree.beam_slots, int64, (batch, k)),
        ("beam_parents", tree.beam_parents, int64, (batch, k)),
        ("beam_ancestors", tree.beam_ancestors, int64, (batch, k, words)),
        ("calls", tree.calls, int64, (batch,)),
        *(() if alive is None else (("alive", alive, torch.bool, (batch,)),)),
        *(() if d2t is None else (("d2t", d2t, int64, (vocabulary,)),)),
    )
    for name, tensor, dtype, shape in expected:
        if tensor.shape != shape or tensor.dtype != dtype:
            fail(f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def grow_tree(
    logits: Tensor,
    tree: TreeBuffers,
    *,
    first: bool,
    alive: Tensor | None = None,
    d2t: Tensor | None = None,
    backend: Backend | None = None,
) -> None:
    """Score the children of one draft level, log-probabilities in float32, and add them to the tree, in place.

    A candidate's score is log_softmax(logits[b, r])[token] + that of its parent, for the k best tokens of each row; the
    new beam are the best k of the R * k candidates. Equal scores: lower index first, which is the draft's own token id,
    whatever `d2t` makes of it. Logits that are NaN or +inf count as -inf, so that one bad row does not spoil the beam.
    A dead row has parent score -inf; its candidates are -inf, like those of a row without numbers, and come last.

    The first level has slots 0 to k - 1 and hangs off the root; every later one the next k * k, child c of beam node p
    at place k p + c. Beam node i sees what its parent sees and its own draft column, calls * k + i with `calls` as it
    was; `beam_parents` says which row of the logits it comes from.

    Args:
        logits: [B, R, V], float16, bfloat16 or float32; R = 1 row with `first`, else one for each of the best R
            of the k beam nodes. The others have no children.
        tree: see `TreeBuffers`; contiguous for the kernel, k at most 16.
        first: start over: what the tree held is forgotten (`scores` is -inf in every other slot, `calls` is 1).
        alive: [B] bool, the rows that grow; the trees of the others stay as they are. None: all grow.
        d2t: [V] int64, target token id = draft token id + d2t[draft token id]; None if the vocabularies are one.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes, strides or devices do not fit, or the backend cannot run here.

    Source: the expansion of EAGLE-2's dynamic tree (arXiv 2406.16858, section 4), kept by EAGLE-3 (2503.01840); RADAR's
        policy reads `beam_scores` (2512.14069).
    """
    _check(logits, tree, first, alive, d2t)
    others = [x for x in (alive, d2t) if x is not None]
    if choose_backend("grow_tree", backend, logits, *tree, *others) == "torch":
        return reference_tree.grow_tree(logits, tree, first=first, alive=alive, d2t=d2t)
    for name, tensor in zip(TreeBuffers._fields, tree, strict=True):
        if not tensor.is_contiguous():
            raise ValueError(f"grow_tree: {name} is written in place and must be contiguous, got {tensor.stride()}")
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    _launch(logits, *tree, first, alive, None if d2t is None else d2t.contiguous())
