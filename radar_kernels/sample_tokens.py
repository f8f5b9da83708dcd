"""The next token of every tree node, sampled with noise that depends on seed, position and token alone."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_sampling
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of
from radar_kernels.reference_sampling import SamplingState
from radar_kernels.scores import (
    fetch_scores,
    finite,
    float_key,
    float_of_key,
    is_filtered,
    kept_bounds,
    score_source,
    score_tokens,
)

__all__ = ["SamplingState", "sample_tokens"]

SEGMENT = 128  # tokens whose maximum and mass are kept
BLOCK = 2048  # tokens a program reads at once
ROOM = BLOCK // 4  # tokens a block that may be kept, with filters; if one has more, select_kernel reads the whole row
LISTERS = 660  # programs that list tokens, or one a row: five on each of 132 multiprocessors, as many as fit


@jit
def scan_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Without filters, of each block: m = max x, max_v (x[v] - m) / T + g[v], and its v. With filters, of each segment:
    m = max x, sum exp((x - m) / T). No noise is made for greedy rows, none for tokens that a filter may drop."""
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
    token = start + tl.arange(0, BLOCK)
    x = score_tokens(token, source, vocabulary, NODES)
    p = tl.load(top_p + batch)
    if is_filtered(t, tl.load(top_k + batch), p, tl.load(min_p + batch), vocabulary):
        tile = x.reshape([BLOCK // SEGMENT, SEGMENT])
        peaks = tl.max(tile, 1)
        totals = tl.sum(tl.math.exp2((tile - finite(peaks)[:, None]) * (1.4426950408889634 / t)), 1)
        segment = row * SEGMENTS + block * (BLOCK // SEGMENT) + tl.arange(0, BLOCK // SEGMENT)
        tl.store(part_max + segment, peaks)
        tl.store(part_value + segment, totals)
    else:
        peak = tl.max(x)
        score = x - finite(peak)
        best = peak - finite(peak)
        if t > 0.0:
            u = uniforms(tl.load(seed + batch), tl.load(positions + row), start, BLOCK)
            score = score * (1.0 / t) + gumbel(u)
            best = tl.max(score)
        out = row * SEGMENTS + block
        tl.store(part_max + out, peak)
        tl.store(part_value + out, best)
        tl.store(part_token + out, tl.min(tl.where(score == best, token, 0x7FFFFFFF)))


@jit
def list_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, logits_b, logits_r, rows,
    vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
    NOISY: tl.constexpr, NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of each block of a row with filters: the tokens that may be kept, in ascending order, and with noise.

    From the segments' maxima and masses follows a bound below which no token can be kept. Every program works it out,
    and then goes through its share of the row's blocks: with many rows the bounds would cost more than the listing.
    The number of tokens goes to part_token; what is behind the first ROOM is not listed. Other rows have nothing to do.
    """
    row = tl.program_id(1)
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    share_of_row = (blocks + tl.num_programs(0) - 1) // tl.num_programs(0)
    first_block = tl.program_id(0) * share_of_row
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    batch = row // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    p = tl.load(top_p + batch)
    least_mass = tl.load(min_p + batch)
    if is_filtered(t, k, p, least_mass, vocabulary):
        scale = 1.4426950408889634 / t
        segments = (vocabulary + SEGMENT - 1) // SEGMENT
        s = tl.arange(0, SEGMENTS)
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s < segments, other=-float("inf"))
        sums = tl.load(part_value + row * SEGMENTS + s, mask=s < segments, other=0.0)
        peak = tl.max(maxima)
        base = finite(peak)
        share = tl.math.exp2((maxima - base) * scale)
        by_rank = (k > 0) & (k < vocabulary)
        bound, floor = kept_bounds(maxima, sums * share, peak, by_rank, k, p, segments, SEGMENT)
        cut = tl.where(by_rank, 0.0, least_mass)  # top-p needs the whole mass of the k best, before min-p
        wanted = (maxima >= bound) & (share > floor) & (share >= cut)
        source = score_source(
            row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
            ancestors, NODES,
        )  # fmt: skip
        key = tl.load(seed + batch)
        position = tl.load(positions + row)
        for block in range(first_block, tl.minimum(first_block + share_of_row, blocks)):
            count = 0
            start = (row.to(tl.int64) * (SEGMENTS * SEGMENT // BLOCK) + block) * ROOM
            for begin in range(block * BLOCK, (block + 1) * BLOCK, TILE):
                if tl.sum((wanted & (s // (TILE // SEGMENT) == begin // TILE)).to(tl.int32)) > 0:
                    token = begin + tl.arange(0, TILE)
                    x = score_tokens(token, source, vocabulary, NODES)
                    mass = tl.math.exp2((x - base) * scale)
                    listed = (x >= bound) & (mass > floor) & (mass >= cut)
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
def select_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, list_score, list_noisy, list_token, tokens,
    logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """argmax over the kept tokens of x[v] / T + g[v]; one program a row.

    Nothing is sorted and no border is looked for. The best token is kept if what is better than it in score weighs less
    than p of the whole, and is fewer than k. If not, neither it nor any token behind it in score is kept, and the best
    of those ahead is tried. It is a random one of them: the mass ahead shrinks as the product of uniform numbers does,
    and 1 + log(1 / p) tries are expected.
    """
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    batch = row // rows
    t = tl.load(temperature + batch)
    k = tl.load(top_k + batch)
    p = tl.load(top_p + batch)
    least_mass = tl.load(min_p + batch)
    s = tl.arange(0, SEGMENTS)
    NOWHERE: tl.constexpr = 0x7FFFFFFF
    BLOCKS: tl.constexpr = SEGMENTS * SEGMENT // BLOCK
    if is_filtered(t, k, p, least_mass, vocabulary):
        source = score_source(
            row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
            ancestors, NODES,
        )  # fmt: skip
        offset = row.to(tl.int64) * (BLOCKS * ROOM)
        lists = (list_score + offset, list_noisy + offset, list_token + offset)
        scale = 1.4426950408889634 / t
        segments = (vocabulary + SEGMENT - 1) // SEGMENT
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s < segments, other=-float("inf"))
        sums = tl.load(part_value + row * SEGMENTS + s, mask=s < segments, other=0.0)
        peak = tl.max(maxima)
        base = finite(peak)
        total = tl.sum(sums * tl.math.exp2((maxima - base) * scale))
        noise = (tl.load(seed + batch), tl.load(positions + row), base, t)
        b = tl.arange(0, BLOCKS)
        counts = tl.load(part_token + row * SEGMENTS + b, mask=b * BLOCK < vocabulary, other=0)
        longest = tl.max(counts)
        packed = longest <= ROOM
        stop = tl.where(packed, (longest * BLOCKS + TILE - 1) // TILE, (vocabulary + TILE - 1) // TILE)

        fewest = NOWHERE  # a kept token has fewer better ones
        if (k > 0) & (k < vocabulary):
            fewest = k
            if p < 1.0:  # of the mass of the k best
                worst = tl.full([TILE], float("inf"), tl.float32)
                for i in range(0, stop):
                    x, _, token = fetch_scores(
                        i, packed, counts, lists, noise, source, vocabulary, BLOCKS, ROOM, TILE, NODES
                    )
                    worst = tl.minimum(worst, tl.where(token < vocabulary, x, float("inf")))
                low = float_key(tl.min(worst)) - 1
                high = float_key(peak) + 1
                while high - low > 1:  # the largest value that k tokens reach
                    middle = (low + high) >> 1
                    reached = 0
                    reached_mass = 0.0
                    for i in range(0, stop):
                        x, _, _ = fetch_scores(
                            i, packed, counts, lists, noise, source, vocabulary, BLOCKS, ROOM, TILE, NODES
                        )
                        reached += tl.sum((x >= float_of_key(middle)).to(tl.int32))
                        mass = tl.math.exp2((x - base) * scale)
                        reached_mass += tl.sum(tl.where(x >= float_of_key(middle), mass, 0.0))
                    if reached >= k:
                        low = middle
                        total = reached_mass
                    else:
                        high = middle
        enough = tl.where(p < 1.0, p * total, float("inf"))
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
            kept = (at < NOWHERE) & (tl.sum(ahead_mass) < enough) & (tl.sum(ahead_count) < fewest)
            top = tl.max(best)
            trying = (kept == 0) & (top > -float("inf"))
            if trying:
                at = tl.min(tl.where(best == top, best_token, NOWHERE))
                score = tl.max(tl.where(best_token == at, best_score, -float("inf")))
    else:
        blocks = (vocabulary + BLOCK - 1) // BLOCK
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s < blocks, other=-float("inf"))
        values = tl.load(part_value + row * SEGMENTS + s, mask=s < blocks, other=-float("inf"))
        token = tl.load(part_token + row * SEGMENTS + s, mask=s < blocks, other=NOWHERE)
        values += (maxima - finite(tl.max(maxima))) * (1.0 / tl.where(t > 0.0, t, 1.0))
        at = tl.min(tl.where(values == tl.max(values), token, NOWHERE))
    tl.store(tokens + row, tl.minimum(at, vocabulary - 1).to(tl.int64))  # if NaN was found, stay in bounds


def scan_plan(*, rows: int, vocabulary: int, nodes: int, arch: int) -> Plan:
    """Blocks depend on the vocabulary alone: one row or sixty, a token's arithmetic is the same to the last bit."""
    segments = next_power_of_2(-(-vocabulary // SEGMENT))
    block = min(BLOCK, segments * SEGMENT)
    return Plan(
        grid=(-(-vocabulary // block), rows),
        constants={"SEGMENTS": segments, "SEGMENT": SEGMENT, "BLOCK": block, "NODES": nodes, "PDL": arch >= 90},
        options={"num_warps": max(1, block // 256)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def list_plan(*, rows: int, vocabulary: int, nodes: int, arch: int) -> Plan:
    (blocks, _), constants, options = scan_plan(rows=rows, vocabulary=vocabulary, nodes=nodes, arch=arch)
    tile = min(512, constants["BLOCK"])  # few registers, so that many programs share a multiprocessor
    sizes = {"ROOM": min(ROOM, constants["BLOCK"]), "TILE": tile, "NOISY": min(128, tile)}
    warps = 4 if constants["SEGMENTS"] <= 1024 else 8  # a thread holds maximum and mass of eight segments
    return Plan((min(blocks, max(1, LISTERS // rows)), rows), constants | sizes, options | {"num_warps": warps})


def select_plan(*, rows: int, vocabulary: int, nodes: int, arch: int) -> Plan:
    _, constants, options = scan_plan(rows=rows, vocabulary=vocabulary, nodes=nodes, arch=arch)
    tile = min(4096 if arch < 100 else 2048, constants["SEGMENTS"] * SEGMENT)
    warps = max(1, tile // (512 if arch < 100 else 256))
    sizes = {"ROOM": min(ROOM, constants["BLOCK"]), "TILE": tile}
    return Plan((rows,), constants | sizes, options | {"num_warps": warps})


@torch.library.custom_op("radar_kernels::sample_tokens", mutates_args=())
def _launch(
    logits: Tensor, positions: Tensor, seed: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    repetition_penalty: Tensor, biased: Tensor, logit_bias: Tensor, seen: Tensor, draft_tokens: Tensor | None,
    ancestors: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, rows, vocabulary = logits.shape
    arch = architecture(logits.device)
    shape = {"rows": batch * rows, "vocabulary": vocabulary, "nodes": 0 if draft_tokens is None else rows, "arch": arch}
    scan, listing, select = scan_plan(**shape), list_plan(**shape), select_plan(**shape)
    segments, block, room = (select.constants[name] for name in ("SEGMENTS", "BLOCK", "ROOM"))
    part_max, part_value = (logits.new_empty(batch, rows, segments, dtype=torch.float32) for _ in range(2))
    part_token = logits.new_empty(batch, rows, segments, dtype=torch.int32)
    room *= segments * SEGMENT // block
    list_score, list_noisy = (logits.new_empty(batch, rows, room, dtype=torch.float32) for _ in range(2))
    list_token = logits.new_empty(batch, rows, room, dtype=torch.int32)
    tokens = torch.empty_like(positions)
    inputs = (
        logits, positions, seed, temperature, top_k, top_p, min_p, repetition_penalty, biased, logit_bias, seen,
        positions if draft_tokens is None else draft_tokens, positions if ancestors is None else ancestors,
    )  # fmt: skip
    sizes = (*logits.stride()[:2], rows, vocabulary)
    parts, lists = (part_max, part_value, part_token), (list_score, list_noisy, list_token)
    scan.launch(scan_kernel, *inputs, *parts, *sizes)
    listing.launch(list_kernel, *inputs, *parts, *lists, *sizes)
    select.launch(select_kernel, *inputs, *parts, *lists, tokens, *sizes)
    return tokens


@_launch.register_fake
def _(
    logits: Tensor, positions: Tensor, seed: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    repetition_penalty: Tensor, biased: Tensor, logit_bias: Tensor, seen: Tensor, draft_tokens: Tensor | None,
    ancestors: Tensor | None,
) -> Tensor:  # fmt: skip
    return torch.empty_like(positions)


def _check(
    logits: Tensor, positions: Tensor, state: SamplingState, draft_tokens: Tensor | None, ancestors: Tensor | None
) -> None:
    def fail(message: str) -> None:
        raise ValueError(f"sample_tokens: {message}")

    if logits.dim() != 3 or not logits.dtype.is_floating_point or logits.dtype == torch.float64:
        fail(f"logits must be float16, bfloat16 or float32 [B, N, V], got {logits.dtype} {tuple(logits.shape)}")
    batch, nodes, vocabulary = logits.shape
    one, words = (batch,), -(-nodes // 64)
    expected: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "positions": (positions, (batch, nodes), torch.int64),
        "seed": (state.seed, one, torch.int64),
        "top_k": (state.top_k, one, torch.int32),
        "biased": (state.biased, one, torch.bool),
        "logit_bias": (state.logit_bias, (batch, vocabulary), torch.float32),
        "seen": (state.seen, (batch, -(-vocabulary // 32)), torch.int32),
    }
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        expected[name] = (getattr(state, name), one, torch.float32)
    if (draft_tokens is None) != (ancestors is None):
        fail("draft_tokens and ancestors describe one tree: give both or none")
    if draft_tokens is not None and ancestors is not None:
        expected["draft_tokens"] = (draft_tokens, (batch, nodes), torch.int64)
        expected["ancestors"] = (ancestors, (batch, nodes, words), torch.int64)
    for name, (tensor, shape, dtype) in expected.items():
        if tensor.shape != shape or tensor.dtype != dtype:
            fail(f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def sample_tokens(
    logits: Tensor,
    positions: Tensor,
    state: SamplingState,
    *,
    draft_tokens: Tensor | None = None,
    ancestors: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Sample the token after each node: argmax_v of score[v] / temperature + g(seed, position, v) over kept tokens.

    g is Gumbel noise, so the argmax is a sample of the softmax; and as g depends on seed, position and token alone, the
    same distribution at the same position gives the same token, whatever else is computed with it. In the order of
    transformers: the bias is added; scores of tokens that the text or the node's own path already holds are divided by
    the repetition penalty, multiplied where negative; temperature; then top-k (ties with the k-th are all kept), top-p
    (equal scores: lower token first) and min-p, each on what the one before it has left. The best token is always kept.
    Masses are sums in float32, so a token whose border lies within 1e-6 of top-p may fall on either side of it.
    Tokens are ordered by their score before the division by temperature. Temperature 0: the best score; equal scores:
    lower token. Nothing is asked of the host and no parameter is a constant of a kernel: a captured graph sees changes.

    Args:
        logits: [B, N, V], float16, bfloat16 or float32; -inf is allowed, not a whole row of it.
        positions: [B, N] int64, the index in the text that the sampled token will have.
        state: the sequences' parameters and history, contiguous; see `SamplingState`.
        draft_tokens: [B, N] int64, the nodes' own tokens, or None: no tree, the history is `state.seen`.
        ancestors: [B, N, ceil(N / 64)] int64, bit c of word w: node 64 w + c is an ancestor, or the node itself.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [B, N] int64.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: Gumbel-max sampling with the counter-based generator Philox 4x32-10 (Salmon et al., SC 2011).
    """
    _check(logits, positions, state, draft_tokens, ancestors)
    tree = [tensor.contiguous() for tensor in (draft_tokens, ancestors) if tensor is not None]
    if choose_backend("sample_tokens", backend, logits, positions, *state, *tree) == "torch":
        return reference_sampling.sample_tokens(
            logits, positions, state, draft_tokens=draft_tokens, ancestors=ancestors
        )
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    tokens: Tensor = _launch(
        logits, positions.contiguous(), *(tensor.contiguous() for tensor in state), *(tree or (None, None))
    )
    return tokens
