"""Candidates and beam of one draft level: log-softmax, parent score, top-k of every row, top-k of the level."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference import TopkConfidence

__all__ = ["TopkConfidence", "topk_confidence"]

MAX_K = 16
MAX_ROWS = 256


@jit
def _select(x, valid, position, K: tl.constexpr, K_PAD: tl.constexpr):
    """The K largest valid x as float32 and their positions, both [K_PAD]; equal x: lower position first.

    Comparisons are of integers that order like x, because a maximum of integers over a warp is one instruction. If x
    has 16 bits, its position (below 2**16) shares the integer, and one maximum finds both. Where fewer than K are
    valid, the position is beyond all others.
    """
    LOWEST: tl.constexpr = -0x80000000
    BEYOND: tl.constexpr = 0x7FFFFFFF
    slot = tl.arange(0, K_PAD)
    picks = tl.full([K_PAD], LOWEST, tl.int32)
    if x.dtype.primitive_bitwidth == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        key = ((bits ^ ((bits >> 15) & 0x7FFF)) << 16) | (0xFFFF - position)
        key = tl.where(valid, key, LOWEST)
        best = tl.max(key)
        picks = tl.where(slot == 0, best, picks)
        for i in tl.static_range(1, K):
            # The largest key below the last one. Counted from that one upwards it is the last of all, because counting
            # wraps around: one addition and one maximum a key, and no key needs to be crossed out
            below = best + tl.max((key - best).to(tl.uint32)).to(tl.int32)
            best = tl.where(below < best, below, LOWEST)
            picks = tl.where(slot == i, best, picks)
        positions = 0xFFFF - (picks & 0xFFFF)
        bits = picks >> 16
        values = (bits ^ ((bits >> 15) & 0x7FFF)).to(tl.int16).to(x.dtype, bitcast=True).to(tl.float32)
    else:
        positions = tl.full([K_PAD], BEYOND, tl.int32)
        bits = x.to(tl.int32, bitcast=True)
        key = tl.where(valid, bits ^ ((bits >> 31) & 0x7FFFFFFF), LOWEST)
        for i in tl.static_range(K):
            best = tl.max(key)
            at = tl.min(tl.where(key == best, position, BEYOND))
            at = tl.where(best > LOWEST, at, BEYOND)
            picks = tl.where(slot == i, best, picks)
            positions = tl.where(slot == i, at, positions)
            key = tl.where(position == at, LOWEST, key)
        values = (picks ^ ((picks >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return values, positions


@jit
def scan_kernel(
    logits, segment_max, segment_sum, arrived, logits_b, logits_r, rows, vocabulary,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """m[s] = max x, z[s] = sum exp(x - m[s]) over each segment s of SEGMENT logits; -inf and 0 behind the row."""
    block = tl.program_id(0)
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    segment = block * (BLOCK // SEGMENT) + tl.arange(0, BLOCK // SEGMENT)
    token = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    start = (row // rows).to(tl.int64) * logits_b + (row % rows).to(tl.int64) * logits_r
    x = tl.load(logits + start + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)
    x = tl.where(x < float("inf"), x, -float("inf"))  # NaN and +inf
    peak = tl.max(x, 1)
    base = tl.where(peak == -float("inf"), 0.0, peak)  # -inf - -inf = NaN
    total = tl.sum(tl.exp(x - base[:, None]), 1)
    out = row * SEGMENTS + segment
    tl.store(segment_max + out, peak.to(segment_max.dtype.element_ty))  # exact
    tl.store(segment_sum + out, total)
    if (block == 0) & (row % rows == 0):
        tl.store(arrived + row // rows, 0)


@jit
def select_kernel(
    logits, parent_scores, d2t, segment_max, segment_sum, arrived,
    candidate_scores, candidate_tokens, scores, indices, logits_b, logits_r, parents_b, parents_r, rows, vocabulary,
    K: tl.constexpr, K_PAD: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
    CANDIDATES_PAD: tl.constexpr, D2T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """c[r, i] = x[r, t_i] - log sum exp x[r] + parent[r] for the k best tokens t_i of row r, then the k best c of all.

    Ordered by (value, lower index first), the k best tokens lie in the k segments with the best maxima, so only those
    are read again. One warp a row: nothing waits at a barrier. The last row of a sequence to arrive selects the beam.
    """
    row = tl.program_id(0)
    batch = (row // rows).to(tl.int64)
    s = tl.arange(0, SEGMENTS)
    slot = tl.arange(0, K_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    maxima = tl.load(segment_max + row * SEGMENTS + s)
    sums = tl.load(segment_sum + row * SEGMENTS + s)
    parent = tl.load(parent_scores + batch * parents_b + (row % rows) * parents_r)
    peak = tl.max(maxima.to(tl.float32))
    base = tl.where(peak == -float("inf"), 0.0, peak)
    log_total = base + tl.log(tl.sum(sums * tl.exp(maxima.to(tl.float32) - base)))

    _, best = _select(maxima, s >= 0, s, K, K_PAD)
    best = tl.where(best < SEGMENTS, best, SEGMENTS + slot)  # unused slots: all different, behind the vocabulary
    # in ascending order, so that a lower position in the block below is a lower token
    rank = tl.sum((best[None, :] < best[:, None]).to(tl.int32), 1)
    chosen = tl.sum(tl.where(rank[:, None] == slot[None, :], best[:, None], 0), 0)

    offset = tl.arange(0, SEGMENT)[None, :]
    token = chosen[:, None] * SEGMENT + offset
    start = batch * logits_b + (row % rows).to(tl.int64) * logits_r
    x = tl.load(logits + start + token, mask=token < vocabulary, other=-float("inf"))
    wide = x.to(tl.float32)  # Triton 3.6's interpreter has no bfloat16 constants
    x = tl.where(wide < float("inf"), wide, -float("inf")).to(x.dtype)
    values, positions = _select(x, token < vocabulary, slot[:, None] * SEGMENT + offset, K, K_PAD)
    segment = tl.sum(tl.where((positions // SEGMENT)[:, None] == slot[None, :], chosen[None, :], 0), 1)
    tokens = (segment * SEGMENT + positions % SEGMENT).to(tl.int64)
    candidate = values - log_total + parent
    candidate = tl.where(values == -float("inf"), values, candidate)  # also where log_total is -inf
    candidate = tl.where(parent == -float("inf"), parent, candidate)
    tl.store(candidate_scores + row * K + slot, candidate, mask=slot < K)
    if D2T:
        tokens += tl.load(d2t + tokens, mask=slot < K, other=0)

    tl.debug_barrier()  # every thread's scores come before the release below
    last = tl.atomic_add(arrived + batch, 1, sem="acq_rel") == rows - 1
    tl.store(candidate_tokens + row * K + slot, tokens, mask=slot < K)  # the beam does not wait for these
    if last:
        c = tl.arange(0, CANDIDATES_PAD)
        real = c < rows * K
        everyone = tl.load(
            candidate_scores + batch * rows * K + c, mask=real, other=-float("inf"), cache_modifier=".cg"
        )
        beam, at = _select(everyone, real, c, K, K_PAD)
        tl.store(scores + batch * K + slot, beam, mask=slot < K)
        tl.store(indices + batch * K + slot, at.to(tl.int64), mask=slot < K)


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


def select_plan(*, batch: int, rows: int, vocabulary: int, k: int, d2t: bool, arch: int) -> Plan:
    segment = segment_size(vocabulary)
    return Plan(
        grid=(batch * rows,),
        constants={
            "K": k, "K_PAD": next_power_of_2(k), "SEGMENT": segment,
            "SEGMENTS": next_power_of_2(-(-vocabulary // segment)), "CANDIDATES_PAD": next_power_of_2(rows * k),
            "D2T": d2t, "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _outputs(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows, _ = logits.shape
    return (
        logits.new_empty(batch, rows, k, dtype=torch.float32),
        logits.new_empty(batch, rows, k, dtype=torch.int64),
        logits.new_empty(batch, k, dtype=torch.float32),
        logits.new_empty(batch, k, dtype=torch.int64),
    )


@torch.library.custom_op("radar_kernels::topk_confidence", mutates_args=())
def _launch(logits: Tensor, parent_scores: Tensor, k: int, d2t: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows, vocabulary = logits.shape
    arch = architecture(logits.device)
    scan = scan_plan(batch=batch, rows=rows, vocabulary=vocabulary, arch=arch)
    select = select_plan(batch=batch, rows=rows, vocabulary=vocabulary, k=k, d2t=d2t is not None, arch=arch)
    segments = scan.constants["SEGMENTS"]
    segment_max = logits.new_empty(batch, rows, segments)
    segment_sum = parent_scores.new_empty(batch, rows, segments)
    arrived = logits.new_empty(batch, dtype=torch.int32)  # zeroed by the scan: no state outlives a call
    output = _outputs(logits, k)
    shape = (rows, vocabulary)
    scan.launch(scan_kernel, logits, segment_max, segment_sum, arrived, *logits.stride()[:2], *shape)
    select.launch(
        select_kernel, logits, parent_scores, logits if d2t is None else d2t, segment_max, segment_sum, arrived,
        *output, *logits.stride()[:2], *parent_scores.stride(), *shape,
    )  # fmt: skip
    return output


@_launch.register_fake
def _(logits: Tensor, parent_scores: Tensor, k: int, d2t: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(logits, k)


def _check(logits: Tensor, parent_scores: Tensor, k: int, d2t: Tensor | None) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"topk_confidence: {message}")

    if logits.dim() != 3 or not logits.dtype.is_floating_point or logits.dtype == torch.float64:
        fail(f"logits must be float16, bfloat16 or float32 [B, R, V], got {logits.dtype} {tuple(logits.shape)}")
    batch, rows, vocabulary = logits.shape
    if parent_scores.shape != (batch, rows) or parent_scores.dtype != torch.float32:
        fail(f"parent_scores must be float32 [{batch}, {rows}], got {parent_scores.dtype} {tuple(parent_scores.shape)}")
    if not 1 <= k <= min(MAX_K, vocabulary):
        fail(f"k must be from 1 to {min(MAX_K, vocabulary)}, got {k}")
    if not 1 <= rows <= MAX_ROWS:
        fail(f"logits must have 1 to {MAX_ROWS} rows per sequence, got {rows}")
    if d2t is not None and (d2t.shape != (vocabulary,) or d2t.dtype != torch.int64):
        fail(f"d2t must be int64 [{vocabulary}], got {d2t.dtype} {tuple(d2t.shape)}")


def topk_confidence(
    logits: Tensor, parent_scores: Tensor, k: int, *, d2t: Tensor | None = None, backend: Backend | None = None
) -> TopkConfidence:
    """Score the children of one draft level and keep its best k, log-probabilities in float32.

    candidate[b, r, i] = log_softmax(logits[b, r])[token] + parent_scores[b, r] for the k best tokens of each row; the
    beam is the best k of the R * k candidates. Equal scores: lower index first, which is the draft's own token id,
    whatever `d2t` makes of it. Logits that are NaN or +inf count as -inf, so that one bad row does not spoil the beam.
    A dead row has parent score -inf; its candidates are -inf, like those of a row without numbers, and come last.

    Args:
        logits: [B, R, V], float16, bfloat16 or float32, R <= 256.
        parent_scores: [B, R] float32, cumulative log-probabilities of the rows.
        k: 1 to 16, at most V.
        d2t: [V] int64, target token id = draft token id + d2t[draft token id]; None if the vocabularies are one.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        TopkConfidence(candidate_scores [B, R, k], candidate_tokens [B, R, k], scores [B, k], indices [B, k]).

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: one expansion of EAGLE-3's dynamic tree (arXiv 2503.01840); RADAR's policy reads `scores` (2512.14069).
    """
    _check(logits, parent_scores, k, d2t)
    tensors = (logits, parent_scores) if d2t is None else (logits, parent_scores, d2t)
    if choose_backend("topk_confidence", backend, *tensors) == "torch":
        return reference.topk_confidence(logits, parent_scores, k, d2t=d2t)
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    return TopkConfidence(*_launch(logits, parent_scores, k, None if d2t is None else d2t.contiguous()))
