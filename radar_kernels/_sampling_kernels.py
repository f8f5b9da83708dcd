"""The three kernels of `sample_tokens`: scan the rows, narrow the choice where filters are on, select.

A row is one of three kinds. Without filters the best of its parts is the answer. With top-k it is *ranked*: the few
tokens that may be kept are listed, and the answer is looked for in the list. With top-p or min-p alone it is *weighed*:
the best token of all is kept if what is better than it in score weighs less than p of the whole. If not, neither it nor
any token behind it in score is kept, and the best of those ahead is tried. It is a random one of them: the mass ahead
shrinks as the product of uniform numbers does, and 1 + log(1 / p) tries are expected. Nothing is sorted.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of
from radar_kernels.nucleus import NOWHERE, best_candidate, next_candidate, weigh
from radar_kernels.scores import (
    fetch_scores,
    finite,
    float_key,
    float_of_key,
    is_ranked,
    is_weighed,
    rank_bound,
    score_source,
    score_tokens,
)

__all__ = ["narrow_kernel", "scan_kernel", "select_kernel"]


@jit
def scan_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, NODES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Of ranked rows, the best score of each segment. Of others, of each part: m = max x, max_v (x[v] - m) / T + g[v],
    and its v; no noise is made for greedy rows."""
    block = tl.program_id(0)
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    batch = row // rows
    t = tl.load(temperature + batch)
    source = score_source(
        row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens, ancestors,
        NODES,
    )  # fmt: skip
    start = block * BLOCK
    x = score_tokens(start + tl.arange(0, BLOCK), source, vocabulary, NODES)
    if is_ranked(t, tl.load(top_k + batch), vocabulary):
        segment = row * SEGMENTS + block * (BLOCK // SEGMENT) + tl.arange(0, BLOCK // SEGMENT)
        tl.store(part_max + segment, tl.max(x.reshape([BLOCK // SEGMENT, SEGMENT]), 1))
    else:
        PARTS: tl.constexpr = BLOCK // PART
        part = x.reshape([PARTS, PART])
        peaks = tl.max(part, 1)
        value = part - finite(peaks)[:, None]
        if t > 0.0:
            u = uniforms(tl.load(seed + batch), tl.load(positions + row), start, BLOCK)
            value = value * (1.0 / t) + gumbel(u).reshape([PARTS, PART])
        best = tl.max(value, 1)
        token = start + tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :]
        out = row * SEGMENTS + block * PARTS + tl.arange(0, PARTS)
        tl.store(part_max + out, peaks)
        tl.store(part_value + out, best)
        tl.store(part_token + out, tl.min(tl.where(value == best[:, None], token, NOWHERE), 1))


@jit
def best_of_parts(
    row, t, vocabulary, part_max, part_value, part_token,
    SEGMENTS: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """What the scan has found: m and v of the parts, their noisy scores less the row's best score, and that, `base`."""
    part = tl.arange(0, PARTS)
    inside = part * PART < vocabulary
    peaks = tl.load(part_max + row * SEGMENTS + part, mask=inside, other=-float("inf"))
    values = tl.load(part_value + row * SEGMENTS + part, mask=inside, other=-float("inf"))
    tokens = tl.load(part_token + row * SEGMENTS + part, mask=inside, other=NOWHERE)
    base = finite(tl.max(peaks))
    return peaks, values + (peaks - base) * (1.0 / tl.where(t > 0.0, t, 1.0)), tokens, base


@jit
def narrow_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, tried_score, tried_token, weights,
    logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, ROOM: tl.constexpr,
    TILE: tl.constexpr, NOISY: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr, WEIGHED: tl.constexpr,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of ranked rows, list the tokens that may be kept; of weighed ones, find two candidates and weigh what is ahead of
    them. Every program does its part of the row behind one calculation of bounds, or of candidates; rows without
    filters have nothing to do.

    Ranked: the tokens of each block that score at least what k segments reach, in ascending order, and with noise. How
    many they are goes to part_token; what is behind the first ROOM is not listed.
    """
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    batch = row // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    source = score_source(
        row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens, ancestors,
        NODES,
    )  # fmt: skip
    key = tl.load(seed + batch)
    position = tl.load(positions + row)
    if is_ranked(t, k, vocabulary):
        s = tl.arange(0, SEGMENTS)
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s * SEGMENT < vocabulary, other=-float("inf"))
        base = finite(tl.max(maxima))
        bound = rank_bound(maxima, k, (vocabulary + SEGMENT - 1) // SEGMENT)
        blocks = (vocabulary + BLOCK - 1) // BLOCK
        share_of_row = (blocks + tl.num_programs(0) - 1) // tl.num_programs(0)
        first_block = tl.program_id(0) * share_of_row
        for block in range(first_block, tl.minimum(first_block + share_of_row, blocks)):
            count = 0
            start = (row.to(tl.int64) * (SEGMENTS * SEGMENT // BLOCK) + block) * ROOM
            for begin in range(block * BLOCK, (block + 1) * BLOCK, TILE):
                if tl.sum(((maxima >= bound) & (s // (TILE // SEGMENT) == begin // TILE)).to(tl.int32)) > 0:
                    token = begin + tl.arange(0, TILE)
                    x = score_tokens(token, source, vocabulary, NODES)
                    listed = x >= bound
                    slot = count + tl.cumsum(listed.to(tl.int32)) - 1
                    count += tl.sum(listed.to(tl.int32))
                    tl.store(list_score + start + slot, x, mask=listed & (slot < ROOM))
                    tl.store(list_token + start + slot, token, mask=listed & (slot < ROOM))
            if count > 0:
                tl.debug_barrier()
                stop = tl.minimum(count, ROOM)
                for first in range(0, stop, NOISY):
                    i = first + tl.arange(0, NOISY)
                    listed_x = tl.load(list_score + start + i, mask=i < stop, other=0.0)
                    u = uniforms_of(key, position, tl.load(list_token + start + i, mask=i < stop, other=0))
                    tl.store(list_noisy + start + i, (listed_x - base) * (1.0 / t) + gumbel(u), mask=i < stop)
            tl.store(part_token + row * SEGMENTS + block, count)
    elif is_weighed(t, tl.load(top_p + batch), tl.load(min_p + batch)):
        PARTS: tl.constexpr = SEGMENTS * SEGMENT // PART
        peaks, values, tokens, base = best_of_parts(
            row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART
        )
        noise = (key, position, base, t)
        score_1, at_1 = best_candidate(values, tokens, source, vocabulary, NODES)
        score_2, at_2, _, _ = next_candidate(
            score_1, at_1, values, tokens, peaks, noise, source, vocabulary, PARTS, PART, NODES
        )
        if tl.program_id(0) == 0:
            tl.store(tried_score + row * 2, score_1)
            tl.store(tried_score + row * 2 + 1, score_2)
            tl.store(tried_token + row * 2, at_1)
            tl.store(tried_token + row * 2 + 1, at_2)
        for share in range(tl.program_id(0), (vocabulary + SHARE - 1) // SHARE, tl.num_programs(0)):
            ahead_1, ahead_2, whole = weigh(
                share * SHARE, tl.minimum((share + 1) * SHARE, vocabulary), (score_1, at_1), (score_2, at_2), base,
                1.4426950408889634 / t, source, vocabulary, WEIGHED, NODES,
            )  # fmt: skip
            out = weights + row * (3 * SHARES) + share
            tl.store(out, ahead_1)
            tl.store(out + SHARES, ahead_2)
            tl.store(out + 2 * SHARES, whole)


@jit
def select_ranked(
    row, k, p, least_mass, t, key, position, source, vocabulary, part_max, part_token, list_score, list_noisy,
    list_token,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
    NODES: tl.constexpr,
):  # fmt: skip
    """argmax of x[v] / T + g[v] over what top-k keeps, then top-p of the mass of that, then min-p."""
    BLOCKS: tl.constexpr = SEGMENTS * SEGMENT // BLOCK
    offset = row.to(tl.int64) * (BLOCKS * ROOM)
    lists = (list_score + offset, list_noisy + offset, list_token + offset)
    scale = 1.4426950408889634 / t
    s = tl.arange(0, SEGMENTS)
    peak = tl.max(tl.load(part_max + row * SEGMENTS + s, mask=s * SEGMENT < vocabulary, other=-float("inf")))
    base = finite(peak)
    noise = (key, position, base, t)
    b = tl.arange(0, BLOCKS)
    counts = tl.load(part_token + row * SEGMENTS + b, mask=b * BLOCK < vocabulary, other=0)
    longest = tl.max(counts)
    packed = longest <= ROOM
    stop = tl.where(packed, (longest * BLOCKS + TILE - 1) // TILE, (vocabulary + TILE - 1) // TILE)

    enough = float("inf")  # a kept token has less mass ahead of it
    if p < 1.0:  # of the mass of the k best
        worst = tl.full([TILE], float("inf"), tl.float32)
        for i in range(0, stop):
            x, _, token = fetch_scores(i, packed, counts, lists, noise, source, vocabulary, BLOCKS, ROOM, TILE, NODES)
            worst = tl.minimum(worst, tl.where(token < vocabulary, x, float("inf")))
        low = float_key(tl.min(worst)) - 1
        high = float_key(peak) + 1
        while high - low > 1:  # the largest value that k tokens reach
            middle = (low + high) >> 1
            reached = 0
            reached_mass = 0.0
            for i in range(0, stop):
                x, _, _ = fetch_scores(i, packed, counts, lists, noise, source, vocabulary, BLOCKS, ROOM, TILE, NODES)
                reached += tl.sum((x >= float_of_key(middle)).to(tl.int32))
                mass = tl.math.exp2((x - base) * scale)
                reached_mass += tl.sum(tl.where(x >= float_of_key(middle), mass, 0.0))
            if reached >= k:
                low = middle
                enough = p * reached_mass
            else:
                high = middle
    score = -float("inf")  # of the candidate; at first there is none
    at = NOWHERE
    trying = row >= 0
    while trying:
        ahead_mass = tl.zeros([TILE], tl.float32)
        ahead_count = tl.zeros([TILE], tl.int32)
        best = tl.full([TILE], -float("inf"), tl.float32)
        best_score = best
        best_token = tl.full([TILE], NOWHERE, tl.int32)
        for i in range(0, stop):
            x, noisy, token = fetch_scores(
                i, packed, counts, lists, noise, source, vocabulary, BLOCKS, ROOM, TILE, NODES
            )
            mass = tl.math.exp2((x - base) * scale)
            ahead = (x > score) | ((x == score) & (token < at))
            ahead_mass += tl.where(ahead, mass, 0.0)
            ahead_count += (x > score).to(tl.int32)
            better = ahead & (mass >= least_mass) & (noisy > best)
            best = tl.where(better, noisy, best)
            best_score = tl.where(better, x, best_score)
            best_token = tl.where(better, token, best_token)
        kept = (at < NOWHERE) & (tl.sum(ahead_mass) < enough) & (tl.sum(ahead_count) < k)
        top = tl.max(best)
        trying = (kept == 0) & (top > -float("inf"))
        if trying:
            at = tl.min(tl.where(best == top, best_token, NOWHERE))
            score = tl.max(tl.where(best_token == at, best_score, -float("inf")))
    return at


@jit
def select_weighed(
    row, p, least_mass, t, key, position, source, vocabulary, part_max, part_value, part_token, tried_score,
    tried_token, weights,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, PART: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr,
    TILE: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """The first candidate that top-p and min-p keep: nearly always one of the two that the row was weighed for."""
    PARTS: tl.constexpr = SEGMENTS * SEGMENT // PART
    scale = 1.4426950408889634 / t
    share = tl.arange(0, SHARES)
    weighed = share * SHARE < vocabulary
    of_row = weights + row * (3 * SHARES) + share
    ahead_1 = tl.sum(tl.load(of_row, mask=weighed, other=0.0))
    ahead_2 = tl.sum(tl.load(of_row + SHARES, mask=weighed, other=0.0))
    whole = tl.sum(tl.load(of_row + 2 * SHARES, mask=weighed, other=0.0))
    enough = tl.where(p < 1.0, p * whole, float("inf"))
    peaks, values, tokens, base = best_of_parts(
        row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART
    )
    score = tl.load(tried_score + row * 2)
    at = tl.load(tried_token + row * 2)
    kept = (ahead_1 < enough) & (tl.math.exp2((score - base) * scale) >= least_mass)
    if kept == 0:
        score = tl.load(tried_score + row * 2 + 1)
        at = tl.load(tried_token + row * 2 + 1)
        kept = (ahead_2 < enough) & (tl.math.exp2((score - base) * scale) >= least_mass)
    while (kept == 0) & (at < NOWHERE):
        score, at, values, tokens = next_candidate(
            score, at, values, tokens, peaks, (key, position, base, t), source, vocabulary, PARTS, PART, NODES
        )
        kept = tl.math.exp2((score - base) * scale) >= least_mass
        if kept & (p < 1.0):
            ahead, _, _ = weigh(0, vocabulary, (score, at), (score, at), base, scale, source, vocabulary, TILE, NODES)
            kept = ahead < enough
    return at


@jit
def select_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, tried_score, tried_token, weights,
    tokens, logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, ROOM: tl.constexpr,
    SHARE: tl.constexpr, SHARES: tl.constexpr, TILE: tl.constexpr, NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The token of each row, one program a row."""
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    batch = row // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    p = tl.load(top_p + batch)
    least_mass = tl.load(min_p + batch)
    key = tl.load(seed + batch)
    position = tl.load(positions + row)
    source = score_source(
        row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens, ancestors,
        NODES,
    )  # fmt: skip
    at = NOWHERE
    if is_ranked(t, k, vocabulary):
        at = select_ranked(
            row, k, p, least_mass, t, key, position, source, vocabulary, part_max, part_token, list_score, list_noisy,
            list_token, SEGMENTS, SEGMENT, BLOCK, ROOM, TILE, NODES,
        )  # fmt: skip
    elif is_weighed(t, p, least_mass):
        at = select_weighed(
            row, p, least_mass, t, key, position, source, vocabulary, part_max, part_value, part_token, tried_score,
            tried_token, weights, SEGMENTS, SEGMENT, PART, SHARE, SHARES, TILE, NODES,
        )  # fmt: skip
    else:
        PARTS: tl.constexpr = SEGMENTS * SEGMENT // PART
        _, values, best, _ = best_of_parts(row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART)
        at = tl.min(tl.where(values == tl.max(values), best, NOWHERE))
    tl.store(tokens + row, tl.minimum(at, vocabulary - 1).to(tl.int64))  # if NaN was found, stay in bounds
