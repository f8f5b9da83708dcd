"""Top-k: the few tokens that may be kept are listed, and the answer is looked for in the list."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of
from radar_kernels.scores import (
    LEAST_MASS,
    NOWHERE,
    finite,
    float_key,
    float_of_key,
    is_ahead,
    score_tokens,
)

__all__ = ["list_ranked", "select_ranked"]


@jit
def rank_bound(maxima, k, segments):
    """What the k best tokens score at least, from the best scores of the row's segments."""
    bound = -float("inf")
    if k <= segments:  # k segments have a maximum each: the k-th best of these is a bound
        low = float_key(tl.min(maxima))
        high = float_key(tl.max(maxima)) + 1
        while high - low > 1:
            middle = (low + high) >> 1
            if tl.sum((maxima >= float_of_key(middle)).to(tl.int32)) >= k:
                low = middle
            else:
                high = middle
        bound = float_of_key(low)
    return bound


@jit
def list_ranked(
    row, k, t, key, position, source, vocabulary, part_max, part_token, list_score, list_noisy, list_token,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
    NOISY: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """A program's share of a row's blocks: their tokens that score at least what k segments reach, in ascending order,
    and with noise. How many they are goes to part_token; what is behind the first ROOM is not listed."""
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


@jit
def fetch_scores(
    i, packed, counts, lists, noise, source, vocabulary,
    BLOCKS: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """Scores, the same with temperature and noise, and tokens: tile i of the lists, all blocks at once, or of the row;
    a place in the tile sees its tokens in ascending order."""
    if packed:
        WIDTH: tl.constexpr = TILE // BLOCKS
        slot = i * WIDTH + tl.arange(0, WIDTH)
        at = (tl.arange(0, BLOCKS)[:, None] * ROOM + slot[None, :]).reshape([TILE])
        listed = (slot[None, :] < counts[:, None]).reshape([TILE])
        x = tl.load(lists[0] + at, mask=listed, other=-float("inf"))
        noisy = tl.load(lists[1] + at, mask=listed, other=-float("inf"))
        token = tl.load(lists[2] + at, mask=listed, other=vocabulary)
    else:
        key, position, base, t = noise
        token = i * TILE + tl.arange(0, TILE)
        x = score_tokens(token, source, vocabulary, NODES)
        noisy = (x - base) * (1.0 / t) + gumbel(uniforms(key, position, i * TILE, TILE))
    return x, noisy, token


@jit
def select_ranked(
    row, k, p, least_mass, t, key, position, source, vocabulary, part_max, part_token, list_score, list_noisy,
    list_token,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
    NODES: tl.constexpr,
):  # fmt: skip
    """argmax of x[v] / T + g[v] over what top-k keeps, then top-p of the mass of that, then min-p.

    NOWHERE if the best score is not finite: less an infinite one no noisy score is above -inf.
    """
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
                enough = tl.maximum(p * reached_mass, LEAST_MASS)
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
            ahead = is_ahead(x, token, score, at)
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
