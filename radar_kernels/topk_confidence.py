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
def _ordered(x):
    """float32 -> int32 with the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _first_best(key, index):
    """The largest key and, among equal ones, its lowest index."""
    best = tl.max(key)
    return best, tl.min(tl.where(key == best, index, 0x7FFFFFFF))


@jit
def scan_kernel(
    logits, segment_max, segment_sum, arrived, logits_b, logits_r, rows, vocabulary, segments,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """m[s] = max x, z[s] = sum exp(x - m[s]) over every segment of SEGMENT logits of a row."""
    block = tl.program_id(0)
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    segment = block * (BLOCK // SEGMENT) + tl.arange(0, BLOCK // SEGMENT)
    token = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    start = (row // rows).to(tl.int64) * logits_b + (row % rows).to(tl.int64) * logits_r
    x = tl.load(logits + start + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)
    peak = tl.max(x, 1)
    base = tl.where(peak == -float("inf"), 0.0, peak)  # -inf - -inf = NaN
    total = tl.sum(tl.exp(x - base[:, None]), 1)
    out = row * segments + segment
    tl.store(segment_max + out, peak, mask=segment < segments)
    tl.store(segment_sum + out, total, mask=segment < segments)
    if (block == 0) & (row % rows == 0):
        tl.store(arrived + row // rows, 0)


@jit
def select_kernel(
    logits, parent_scores, d2t, segment_max, segment_sum, arrived,
    candidate_scores, candidate_tokens, scores, indices, logits_b, logits_r, parents_b, parents_r, rows, vocabulary,
    segments,
    K: tl.constexpr, K_PAD: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS_PAD: tl.constexpr,
    CANDIDATES_PAD: tl.constexpr, CHUNK: tl.constexpr, D2T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """c[r, i] = x[r, t_i] - log sum exp x[r] + parent[r] for the k best tokens t_i of row r, then the k best c of all.

    Ordered by (value, lower index first), the k best tokens lie in the k segments with the best maxima, so only those
    are read again. The last program of a sequence to arrive ranks its R * k candidates: the rank of c is the number of
    better ones.
    """
    LOWEST: tl.constexpr = -0x80000000
    row = tl.program_id(0)
    batch = row // rows
    s = tl.arange(0, SEGMENTS_PAD)
    slot = tl.arange(0, K_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    maxima = tl.load(segment_max + row * segments + s, mask=s < segments, other=-float("inf"))
    sums = tl.load(segment_sum + row * segments + s, mask=s < segments, other=0.0)
    parent = tl.load(parent_scores + batch.to(tl.int64) * parents_b + (row % rows) * parents_r)
    peak = tl.max(maxima)
    base = tl.where(peak == -float("inf"), 0.0, peak)
    log_total = base + tl.log(tl.sum(sums * tl.exp(maxima - base)))

    key = tl.where(s < segments, _ordered(maxima), LOWEST)
    chosen = tl.zeros([K_PAD], tl.int32) + segments  # a slot without a segment points behind the vocabulary
    for i in tl.static_range(K):
        best, at = _first_best(key, s)
        chosen = tl.where((slot == i) & (best > LOWEST), at, chosen)
        key = tl.where(s == at, LOWEST, key)

    token = chosen[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    start = batch.to(tl.int64) * logits_b + (row % rows).to(tl.int64) * logits_r
    x = tl.load(logits + start + token, mask=token < vocabulary, other=-float("inf")).to(tl.float32)
    key = tl.where(token < vocabulary, _ordered(x), LOWEST)
    token = tl.where(token < vocabulary, token, 0x7FFFFFFF)
    values = tl.zeros([K_PAD], tl.int32)
    tokens = tl.zeros([K_PAD], tl.int32)
    for i in tl.static_range(K):
        best, at = _first_best(key, token)
        values = tl.where(slot == i, best, values)
        tokens = tl.where(slot == i, at, tokens)
        key = tl.where(token == at, LOWEST, key)
    values = values ^ ((values >> 31) & 0x7FFFFFFF)
    candidate = values.to(tl.float32, bitcast=True) - log_total + parent
    candidate = tl.where(parent == -float("inf"), parent, candidate)  # a dead row may hold anything, NaN included
    tokens = tl.minimum(tokens, vocabulary - 1).to(tl.int64)  # a row of NaN must not send the gather below astray
    if D2T:
        tokens += tl.load(d2t + tokens, mask=slot < K, other=0)
    tl.store(candidate_scores + row * K + slot, candidate, mask=slot < K)
    tl.store(candidate_tokens + row * K + slot, tokens, mask=slot < K)

    tl.debug_barrier()  # every thread's stores come before the release below
    if tl.atomic_add(arrived + batch, 1, sem="acq_rel") == rows - 1:
        here = candidate_scores + batch.to(tl.int64) * rows * K
        me = tl.arange(0, CANDIDATES_PAD)
        mine = tl.load(here + me, mask=me < rows * K, other=-float("inf"), cache_modifier=".cg")
        mine_key = _ordered(mine)
        rank = tl.zeros([CANDIDATES_PAD], tl.int32)
        for j0 in tl.static_range(0, CANDIDATES_PAD, CHUNK):
            j = j0 + tl.arange(0, CHUNK)
            other = _ordered(tl.load(here + j, mask=j < rows * K, other=-float("inf"), cache_modifier=".cg"))
            better = (other[None, :] > mine_key[:, None]) | (
                (other[None, :] == mine_key[:, None]) & (j[None, :] < me[:, None])
            )
            rank += tl.sum((better & (j < rows * K)[None, :]).to(tl.int32), 1)
        ranked = (me < rows * K) & (rank < K)
        tl.store(scores + batch * K + rank, mine, mask=ranked)
        tl.store(indices + batch * K + rank, me.to(tl.int64), mask=ranked)


def segment_size(vocabulary: int) -> int:
    """Balances the maxima (V / size) with the logits that are read twice (k * size)."""
    return 64 if vocabulary <= 65536 else 128


def scan_plan(*, batch: int, rows: int, vocabulary: int, arch: int) -> Plan:
    segment = segment_size(vocabulary)
    block = min(2048, max(segment, next_power_of_2(vocabulary)))
    return Plan(
        grid=(-(-vocabulary // block), batch * rows),
        constants={"SEGMENT": segment, "BLOCK": block, "PDL": arch >= 90},
        options={"num_warps": 4} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def select_plan(*, batch: int, rows: int, vocabulary: int, k: int, d2t: bool, arch: int) -> Plan:
    segment, candidates = segment_size(vocabulary), next_power_of_2(rows * k)
    return Plan(
        grid=(batch * rows,),
        constants={
            "K": k, "K_PAD": next_power_of_2(k), "SEGMENT": segment,
            "SEGMENTS_PAD": next_power_of_2(-(-vocabulary // segment)), "CANDIDATES_PAD": candidates,
            "CHUNK": min(candidates, max(1, 16384 // candidates), 128), "D2T": d2t, "PDL": arch >= 90,
        },
        options={"num_warps": 4} | ({"launch_pdl": True} if arch >= 90 else {}),
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
    segments = -(-vocabulary // scan.constants["SEGMENT"])
    segment_max = parent_scores.new_empty(batch, rows, segments)
    segment_sum = parent_scores.new_empty(batch, rows, segments)
    arrived = logits.new_empty(batch, dtype=torch.int32)  # zeroed by the scan: no state outlives a call
    output = _outputs(logits, k)
    shape = (rows, vocabulary, segments)
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
    beam is the best k of the R * k candidates. Equal scores: lower index first. A dead row has parent score -inf; its
    candidates are -inf, whatever its logits hold, and come last.

    Args:
        logits: [B, R, V], float16, bfloat16 or float32, R <= 256; -inf is allowed, not a whole row of it.
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
