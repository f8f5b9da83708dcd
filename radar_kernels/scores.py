"""A token's score inside kernels: logit, bias and repetition penalty; and the order of floats as integers."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = [
    "LARGEST", "LEAST_MASS", "NOWHERE", "NO_TOKEN", "best_score", "finite", "float_key", "float_of_key", "has_token",
    "is_ahead", "is_ranked", "is_weighed", "node_of", "score_source", "score_tokens",
]  # fmt: skip

NOWHERE = tl.constexpr(0x7FFFFFFF)  # behind all tokens
LEAST_MASS = tl.constexpr(1e-37)  # above 0, so that the best token is kept even where top_p is 0 in float32
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
NO_TOKEN = tl.constexpr(-1)  # of a row whose scores are not numbers


@jit
def best_score(x, axis: tl.constexpr):
    """The best along an axis; +inf if one is NaN, which a maximum would pass over."""
    return tl.max(tl.where(x == x, x, float("inf")), axis)


@jit
def has_token(peak):
    """Whether a row with this best score is one to choose from: no score is NaN or +inf, and not all are -inf."""
    return (peak > -float("inf")) & (peak < float("inf"))


@jit
def finite(x):
    """0 for -inf: -inf - -inf = NaN."""
    return tl.where(x == -float("inf"), 0.0, x)


@jit
def float_key(x):
    """An integer that orders like the float32 x, in 64 bits so that differences fit."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@jit
def float_of_key(key):
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def is_ahead(x, token, score, at):
    """Whether a token comes before another in the order of the filters: by score, equal ones by token."""
    return (x > score) | ((x == score) & (token < at))


@jit
def score_tokens(token, source, vocabulary, NODES: tl.constexpr):
    """Logits as float32 with bias and repetition penalty; -inf behind the row."""
    logits, bias, biased, seen, penalty, draft_tokens, ancestors = source
    inside = token < vocabulary
    x = tl.load(logits + token, mask=inside, other=-float("inf")).to(tl.float32)
    if biased:
        x += tl.load(bias + token, mask=inside, other=0.0)
    if penalty != 1.0:
        hit = (tl.load(seen + (token >> 5), mask=inside, other=0) >> (token & 31)) & 1
        for node in range(NODES):
            if (tl.load(ancestors + node // 64) >> (node % 64)) & 1 != 0:
                hit |= (tl.load(draft_tokens + node) == token).to(tl.int32)
        x = tl.where(hit != 0, tl.where(x < 0, x * penalty, x / penalty), x)
    return x


@jit
def node_of(row, nodes, PACKED: tl.constexpr):
    """Which node of which tree a row of logits is of, counted through all of them; -1: of none."""
    node = row
    if PACKED:
        node = tl.load(nodes + row).to(tl.int32)
    return node


@jit
def score_source(
    row, node, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens, ancestors,
    NODES: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """What `score_tokens` reads for one row."""
    batch = (node // rows).to(tl.int64)
    if PACKED:
        first = logits + row.to(tl.int64) * logits_b
    else:
        first = logits + batch * logits_b + (node % rows).to(tl.int64) * logits_r
    return (
        first,
        logit_bias + batch * vocabulary,
        tl.load(biased + batch) != 0,
        seen + batch * ((vocabulary + 31) // 32),
        tl.load(penalty + batch),
        draft_tokens + batch * NODES,
        ancestors + node * ((NODES + 63) // 64),
    )


@jit
def is_ranked(temperature, k, vocabulary):
    """Whether a row is sampled under top-k."""
    return (temperature > 0.0) & (k > 0) & (k < vocabulary)


@jit
def is_weighed(temperature, top_p, min_p):
    """Whether a row that is not ranked is sampled under another filter."""
    return (temperature > 0.0) & ((top_p < 1.0) | (min_p > 0.0))
