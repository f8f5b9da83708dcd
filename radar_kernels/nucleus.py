"""Top-p and min-p without sorting: candidates in the order of their noise, and what weighs ahead of them."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms
from radar_kernels.scores import LEAST_MASS, NOWHERE, finite, has_token, is_ahead, score_tokens

__all__ = ["best_of_parts", "select_weighed", "weigh_row"]


@jit
def best_of_parts(
    row, t, vocabulary, part_max, part_value, part_token,
    SEGMENTS: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """What the scan has found: m of the parts, their noisy scores less the row's best score, v, and that best score."""
    part = tl.arange(0, PARTS)
    inside = part * PART < vocabulary
    peaks = tl.load(part_max + row * SEGMENTS + part, mask=inside, other=-float("inf"))
    values = tl.load(part_value + row * SEGMENTS + part, mask=inside, other=-float("inf"))
    tokens = tl.load(part_token + row * SEGMENTS + part, mask=inside, other=NOWHERE)
    peak = tl.max(peaks)
    return peaks, values + (peaks - finite(peak)) * (1.0 / tl.where(t > 0.0, t, 1.0)), tokens, peak


@jit
def best_candidate(values, tokens, source, vocabulary, NODES: tl.constexpr):
    """Of the best of all parts, the one with the best noisy score: its score without noise, and itself."""
    at = tl.min(tl.where(values == tl.max(values), tokens, NOWHERE))
    return tl.sum(score_tokens(at + tl.zeros([1], tl.int32), source, vocabulary, NODES)), at


@jit
def next_candidate(
    score, at, values, tokens, peaks, noise, source, vocabulary, PARTS: tl.constexpr, PART: tl.constexpr,
    NODES: tl.constexpr,
):  # fmt: skip
    """Of the tokens ahead of (score, at), the one with the best noisy score: its score and itself, or NOWHERE.

    `values` and `tokens` are the best of every part of the row, or of what is left of it. A part whose best is not
    ahead is read again for the best that is, but only once it is on top: the others are no better than they say.
    """
    key, position, base, t = noise
    part = tl.arange(0, PARTS)
    values = tl.where(peaks >= score, values, -float("inf"))  # elsewhere nothing is ahead
    tokens = tl.where(peaks >= score, tokens, NOWHERE)
    found, token = best_candidate(values, tokens, source, vocabulary, NODES)
    while (token < NOWHERE) & (is_ahead(found, token, score, at) == 0):
        start = token // PART * PART
        again = start + tl.arange(0, PART)
        x = score_tokens(again, source, vocabulary, NODES)
        here = part == token // PART
        peak = tl.max(tl.where(here, peaks, -float("inf")))
        # the steps of the scan, in its order
        noisy = (x - finite(peak)) * (1.0 / t) + gumbel(uniforms(key, position, start, PART))
        noisy = tl.where(is_ahead(x, again, score, at), noisy + (peak - base) * (1.0 / t), -float("inf"))
        best = tl.max(noisy)
        left = best > -float("inf")
        values = tl.where(here, best, values)
        tokens = tl.where(here, tl.where(left, tl.min(tl.where(noisy == best, again, NOWHERE)), NOWHERE), tokens)
        found, token = best_candidate(values, tokens, source, vocabulary, NODES)
    return found, token, values, tokens


@jit
def weigh(begin, end, one, two, base, scale, source, vocabulary, TILE: tl.constexpr, NODES: tl.constexpr):
    """Sums of exp((x - base) / T) over the tokens from `begin` to `end`: those ahead of candidate `one`, a score and a
    token, those ahead of `two`, and all of them."""
    ahead_one = tl.zeros([TILE], tl.float32)
    ahead_two = ahead_one
    whole = ahead_one
    for first in range(begin, end, TILE):
        token = first + tl.arange(0, TILE)
        x = score_tokens(token, source, vocabulary, NODES)
        mass = tl.where(token < end, tl.math.exp2((x - base) * scale), 0.0)
        ahead_one += tl.where(is_ahead(x, token, one[0], one[1]), mass, 0.0)
        ahead_two += tl.where(is_ahead(x, token, two[0], two[1]), mass, 0.0)
        whole += mass
    return tl.sum(ahead_one), tl.sum(ahead_two), tl.sum(whole)


@jit
def weigh_row(
    row, t, key, position, source, vocabulary, part_max, part_value, part_token, tried_score, tried_token, weights,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, PART: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr,
    TILE: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """Find the row's first two candidates, and weigh what is ahead of them in this program's shares of the row."""
    PARTS: tl.constexpr = SEGMENTS * SEGMENT // PART
    peaks, values, tokens, peak = best_of_parts(
        row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART
    )
    if has_token(peak):
        noise = (key, position, peak, t)
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
                share * SHARE, tl.minimum((share + 1) * SHARE, vocabulary), (score_1, at_1), (score_2, at_2), peak,
                1.4426950408889634 / t, source, vocabulary, TILE, NODES,
            )  # fmt: skip
            out = weights + row * (3 * SHARES) + share
            tl.store(out, ahead_1)
            tl.store(out + SHARES, ahead_2)
            tl.store(out + 2 * SHARES, whole)


@jit
def select_weighed(
    row, p, least_mass, t, key, position, source, vocabulary, part_max, part_value, part_token, tried_score,
    tried_token, weights,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, PART: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr,
    TILE: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """The first candidate that top-p and min-p keep, or NOWHERE: nearly always one of the two that the row was weighed
    for."""
    PARTS: tl.constexpr = SEGMENTS * SEGMENT // PART
    scale = 1.4426950408889634 / t
    share = tl.arange(0, SHARES)
    weighed = share * SHARE < vocabulary
    of_row = weights + row * (3 * SHARES) + share
    ahead_1 = tl.sum(tl.load(of_row, mask=weighed, other=0.0))
    ahead_2 = tl.sum(tl.load(of_row + SHARES, mask=weighed, other=0.0))
    whole = tl.sum(tl.load(of_row + 2 * SHARES, mask=weighed, other=0.0))
    enough = tl.where(p < 1.0, tl.maximum(p * whole, LEAST_MASS), float("inf"))
    peaks, values, tokens, peak = best_of_parts(
        row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART
    )
    base = finite(peak)
    score = tl.load(tried_score + row * 2)
    at = tl.where(has_token(peak), tl.load(tried_token + row * 2), NOWHERE)  # elsewhere nothing was weighed
    kept = (ahead_1 < enough) & (tl.math.exp2((score - base) * scale) >= least_mass)
    kept = kept | (at == NOWHERE)
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
