"""The three kernels of `sample_tokens`: scan the rows, narrow the choice where filters are on, select.

A row is one of three kinds. Without filters the best of its parts is the answer. With top-k it is *ranked*: the few
tokens that may be kept are listed, and the answer is looked for in the list. With top-p or min-p alone it is *weighed*:
the best token of all is kept if what is better than it in score weighs less than p of the whole. If not, neither it nor
any token behind it in score is kept, and the best of those ahead is tried. It is a random one of them: the mass ahead
shrinks as the product of uniform numbers does, and 1 + log(1 / p) tries are expected. Nothing is sorted.

Scores that are not numbers are found by the scan's own maximum, which counts NaN as +inf: a row whose best score is not
finite has no token. A greedy row's own +inf is the largest finite number from there on.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms
from radar_kernels.nucleus import best_of_parts, select_weighed, weigh_row
from radar_kernels.ranking import list_ranked, select_ranked
from radar_kernels.scores import (
    LARGEST,
    NO_TOKEN,
    NOWHERE,
    best_score,
    finite,
    has_token,
    is_ranked,
    is_weighed,
    node_of,
    score_source,
    score_tokens,
)

__all__ = ["narrow_kernel", "scan_kernel", "select_kernel"]


@jit
def scan_kernel(
    logits, nodes, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, NODES: tl.constexpr,
    PACKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of ranked rows, the best score of each segment. Of others, of each part: m = max x, max_v (x[v] - m) / T + g[v],
    and its v; no noise is made for greedy rows."""
    block = tl.program_id(0)
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    node = node_of(row, nodes, PACKED)
    if node < 0:
        return
    batch = node // rows
    t = tl.load(temperature + batch)
    source = score_source(
        row, node, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
        ancestors, NODES, PACKED,
    )  # fmt: skip
    start = block * BLOCK
    x = score_tokens(start + tl.arange(0, BLOCK), source, vocabulary, NODES)
    if is_ranked(t, tl.load(top_k + batch), vocabulary):
        segment = row * SEGMENTS + block * (BLOCK // SEGMENT) + tl.arange(0, BLOCK // SEGMENT)
        tl.store(part_max + segment, best_score(x.reshape([BLOCK // SEGMENT, SEGMENT]), 1))
    else:
        PARTS: tl.constexpr = BLOCK // PART
        part = x.reshape([PARTS, PART])
        if t <= 0.0:  # the best score may be +inf; where one samples, it has no share
            part = tl.where(part == float("inf"), LARGEST, part)
        peaks = best_score(part, 1)
        value = part - finite(peaks)[:, None]
        if t > 0.0:
            u = uniforms(tl.load(seed + batch), tl.load(positions + node), start, BLOCK)
            value = value * (1.0 / t) + gumbel(u).reshape([PARTS, PART])
        best = tl.max(value, 1)
        token = start + tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :]
        out = row * SEGMENTS + block * PARTS + tl.arange(0, PARTS)
        tl.store(part_max + out, peaks)
        tl.store(part_value + out, best)
        tl.store(part_token + out, tl.min(tl.where(value == best[:, None], token, NOWHERE), 1))


@jit
def narrow_kernel(
    logits, nodes, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, tried_score, tried_token, weights,
    logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, ROOM: tl.constexpr,
    TILE: tl.constexpr, NOISY: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr, WEIGHED: tl.constexpr,
    NODES: tl.constexpr, PACKED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Of ranked rows, list the tokens that may be kept; of weighed ones, find two candidates and weigh what is ahead of
    them. Every program does its part of the row behind one calculation of bounds, or of candidates; rows without
    filters have nothing to do."""
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    node = node_of(row, nodes, PACKED)
    if node < 0:
        return
    batch = node // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    source = score_source(
        row, node, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
        ancestors, NODES, PACKED,
    )  # fmt: skip
    key = tl.load(seed + batch)
    position = tl.load(positions + node)
    if is_ranked(t, k, vocabulary):
        list_ranked(
            row, k, t, key, position, source, vocabulary, part_max, part_token, list_score, list_noisy, list_token,
            SEGMENTS, SEGMENT, BLOCK, ROOM, TILE, NOISY, NODES,
        )  # fmt: skip
    elif is_weighed(t, tl.load(top_p + batch), tl.load(min_p + batch)):
        weigh_row(
            row, t, key, position, source, vocabulary, part_max, part_value, part_token, tried_score, tried_token,
            weights, SEGMENTS, SEGMENT, PART, SHARE, SHARES, WEIGHED, NODES,
        )  # fmt: skip


@jit
def select_kernel(
    logits, nodes, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, tried_score, tried_token, weights,
    tokens, logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, ROOM: tl.constexpr,
    SHARE: tl.constexpr, SHARES: tl.constexpr, TILE: tl.constexpr, NODES: tl.constexpr, PACKED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The token of each row, or NO_TOKEN; one program a row."""
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    node = node_of(row, nodes, PACKED)
    if node < 0:
        return
    batch = node // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    p = tl.load(top_p + batch)
    least_mass = tl.load(min_p + batch)
    key = tl.load(seed + batch)
    position = tl.load(positions + node)
    source = score_source(
        row, node, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
        ancestors, NODES, PACKED,
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
        _, values, best, peak = best_of_parts(
            row, t, vocabulary, part_max, part_value, part_token, SEGMENTS, PARTS, PART
        )
        at = tl.min(tl.where(values == tl.max(values), best, NOWHERE))
        at = tl.where(has_token(peak), at, NOWHERE)
    tl.store(tokens + node, tl.where(at < NOWHERE, at, NO_TOKEN).to(tl.int64))
