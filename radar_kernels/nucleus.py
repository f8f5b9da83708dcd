"""Top-p and min-p without sorting: candidates in the order of their noise, and what weighs ahead of them."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms
from radar_kernels.scores import finite, score_tokens

__all__ = ["NOWHERE", "best_candidate", "is_ahead", "next_candidate", "weigh"]

NOWHERE = tl.constexpr(0x7FFFFFFF)  # no token


@jit
def is_ahead(x, token, score, at):
    """Whether a token comes before another in the order of the filters: by score, equal ones by token."""
    return (x > score) | ((x == score) & (token < at))


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
        # to the last bit what the scan has found
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
