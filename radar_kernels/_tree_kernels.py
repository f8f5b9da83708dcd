"""The kernels of `grow_tree`: the best of every row's logits, and the level that they add to the tree."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["grow_kernel", "scan_kernel"]


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
def grow_kernel(
    logits, d2t, alive, segment_max, segment_sum, arrived, drafts,
    scores, tokens, parents, beam_scores, beam_tokens, beam_slots, beam_parents, beam_ancestors, calls,
    logits_b, logits_r, vocabulary,
    ROWS: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
    SLOTS: tl.constexpr, SLOTS_PAD: tl.constexpr, LEVEL_PAD: tl.constexpr, WORDS: tl.constexpr,
    WORDS_PAD: tl.constexpr, D2T: tl.constexpr, FIRST: tl.constexpr, MASKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """c[r, i] = x[r, t_i] - log sum exp x[r] + parent[r] for the k best tokens t_i of row r, then the k best c of all.

    Ordered by (value, lower index first), the k best tokens lie in the k segments with the best maxima, so only those
    are read again. One warp a row: nothing waits at a barrier. Each row writes its candidates' slots; the last one of a
    sequence to arrive makes the new beam, which no other reads any more.
    """
    row = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    s = tl.arange(0, SEGMENTS)
    slot = tl.arange(0, K_PAD)
    real = slot < K
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if MASKED:  # noqa: SIM102  # a test at compile time, and one at run time
        if tl.load(alive + batch) == 0:
            return
    maxima = tl.load(segment_max + (batch * ROWS + row) * SEGMENTS + s)
    sums = tl.load(segment_sum + (batch * ROWS + row) * SEGMENTS + s)
    if FIRST:
        depth = batch * 0
        first = batch * 0  # slot of the level
        parent = tl.full([], 0.0, tl.float32)
        above = batch * 0 - 1
    else:
        depth = tl.load(calls + batch)
        first = K + (depth - 1) * (K * K)
        parent = tl.load(beam_scores + batch * K + row)
        above = tl.load(beam_slots + batch * K + row)
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
    start = batch * logits_b + row.to(tl.int64) * logits_r
    x = tl.load(logits + start + token, mask=token < vocabulary, other=-float("inf"))
    wide = x.to(tl.float32)  # Triton 3.6's interpreter has no bfloat16 constants
    x = tl.where(wide < float("inf"), wide, -float("inf")).to(x.dtype)
    values, positions = _select(x, token < vocabulary, slot[:, None] * SEGMENT + offset, K, K_PAD)
    segment = tl.sum(tl.where((positions // SEGMENT)[:, None] == slot[None, :], chosen[None, :], 0), 1)
    draft = segment * SEGMENT + positions % SEGMENT
    candidate = values - log_total + parent
    candidate = tl.where(values == -float("inf"), values, candidate)  # also where log_total is -inf
    candidate = tl.where(parent == -float("inf"), parent, candidate)
    own = first + row * K + slot
    written = real & (own < SLOTS)
    tl.store(scores + batch * SLOTS + own, candidate, mask=written)
    tl.store(parents + batch * SLOTS + own, above + slot * 0, mask=written)
    tl.store(drafts + (batch * ROWS + row) * K + slot, draft, mask=real)

    tl.debug_barrier()  # what every thread has read of the old beam and written comes before the release below
    last = tl.atomic_add(arrived + batch, 1, sem="acq_rel") == ROWS - 1
    if D2T:  # the beam does not wait for these
        tl.store(tokens + batch * SLOTS + own, draft + tl.load(d2t + draft, mask=real, other=0), mask=written)
    else:
        tl.store(tokens + batch * SLOTS + own, draft.to(tl.int64), mask=written)
    if last:
        c = tl.arange(0, LEVEL_PAD)
        w = tl.arange(0, WORDS_PAD)[None, :]
        there = (c < ROWS * K) & (first + c < SLOTS)
        everyone = tl.load(scores + batch * SLOTS + first + c, mask=there, other=-float("inf"), cache_modifier=".cg")
        score, at = _select(everyone, c < ROWS * K, c, K, K_PAD)
        at = tl.minimum(at, ROWS * K - 1)  # a beam that is not there stays in bounds
        picked = tl.load(drafts + batch * ROWS * K + at, mask=real, other=0, cache_modifier=".cg").to(tl.int64)
        if D2T:
            picked += tl.load(d2t + picked, mask=real, other=0)
        known = real[:, None] & (w < WORDS)
        seen = tl.full([K_PAD, WORDS_PAD], 0, tl.int64)
        if not FIRST:
            seen = tl.load(beam_ancestors + (batch * K + at // K)[:, None] * WORDS + w, mask=known, other=0)
        column = depth * K + slot
        bit = tl.full([K_PAD], 1, tl.int64) << (column % 64)
        seen |= tl.where(w == (column // 64)[:, None], bit[:, None], 0)
        tl.debug_barrier()  # the old beam is read before the new one overwrites it
        tl.store(beam_scores + batch * K + slot, score, mask=real)
        tl.store(beam_tokens + batch * K + slot, picked, mask=real)
        tl.store(beam_slots + batch * K + slot, first + at, mask=real)
        tl.store(beam_parents + batch * K + slot, (at // K).to(tl.int64), mask=real)
        tl.store(beam_ancestors + (batch * K + slot)[:, None] * WORDS + w, seen, mask=known)
        tl.store(calls + batch, depth + 1)
        if FIRST:
            every = tl.arange(0, SLOTS_PAD)
            empty = tl.full([SLOTS_PAD], -float("inf"), tl.float32)
            tl.store(scores + batch * SLOTS + every, empty, mask=(every >= K) & (every < SLOTS))
