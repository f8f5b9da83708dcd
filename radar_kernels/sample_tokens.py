"""The next token of every tree node, sampled with noise that depends on seed, position and token alone."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_sampling
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of
from radar_kernels.reference_sampling import SamplingState
from radar_kernels.scores import finite, float_key, float_of_key, is_filtered, score_source, score_tokens

__all__ = ["SamplingState", "sample_tokens"]

SEGMENT = 128  # tokens whose maximum and mass are kept: what select_kernel reads again, or not
LIST = 32768  # tokens a row that select_kernel keeps in a list; with more it reads their segments each time


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
        if t > 0.0:
            u = uniforms(tl.load(seed + batch), tl.load(positions + row), start, BLOCK)
            score = score * (1.0 / t) + gumbel(u)
        best = tl.max(score)
        out = row * SEGMENTS + block
        tl.store(part_max + out, peak)
        tl.store(part_value + out, best)
        tl.store(part_token + out, tl.min(tl.where(score == best, token, 0x7FFFFFFF)))


@jit
def _fetch(
    start, stop, packed, lists, source, vocabulary, TILE: tl.constexpr, SEGMENT: tl.constexpr, NODES: tl.constexpr
):
    """Scores and tokens, in ascending order, number `start` and up of the list, or of the chosen segments."""
    list_score, list_token, chosen = lists
    if packed:
        i = start + tl.arange(0, TILE * SEGMENT)
        x = tl.load(list_score + i, mask=i < stop, other=-float("inf"))
        token = tl.load(list_token + i, mask=i < stop, other=vocabulary)
    else:
        j = start // SEGMENT + tl.arange(0, TILE)
        segment = tl.load(chosen + j, mask=j * SEGMENT < stop, other=(vocabulary + SEGMENT - 1) // SEGMENT)
        tile = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
        x = score_tokens(tile, source, vocabulary, NODES).reshape([TILE * SEGMENT])
        token = tile.reshape([TILE * SEGMENT])
    return x, token


@jit
def select_kernel(
    logits, positions, seed, temperature, top_k, top_p, min_p, penalty, biased, logit_bias, seen, draft_tokens,
    ancestors, part_max, part_value, part_token, chosen, list_score, list_token, tokens,
    logits_b, logits_r, rows, vocabulary,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """argmax over the kept tokens of x[v] / T + g[v]; one program a row, which alone waits for itself.

    Nothing is sorted. From the segments' maxima and masses follows a bound below which no token can be kept; what lies
    above it goes to a list, in the order of the tokens. On that list the thresholds of top-k and top-p are found by
    bisection of the floats' order, exactly: sums of masses in one fixed order grow with the set that is summed.
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
    if is_filtered(t, k, p, least_mass, vocabulary):
        source = score_source(
            row, rows, vocabulary, logits, logits_b, logits_r, logit_bias, biased, seen, penalty, draft_tokens,
            ancestors, NODES,
        )  # fmt: skip
        offset = row.to(tl.int64)
        lists = (list_score + offset * LIST, list_token + offset * LIST, chosen + offset * SEGMENTS)
        scale = 1.4426950408889634 / t
        segments = (vocabulary + SEGMENT - 1) // SEGMENT
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s < segments, other=-float("inf"))
        sums = tl.load(part_value + row * SEGMENTS + s, mask=s < segments, other=0.0)
        peak = tl.max(maxima)
        base = finite(peak)
        share = tl.math.exp2((maxima - base) * scale)
        sums = sums * share
        total = tl.sum(sums)
        by_rank = (k > 0) & (k < vocabulary)

        bound = -float("inf")  # kept tokens score at least this
        floor = 0.0  # and their mass, exp((x - peak) / T), is over this
        if by_rank:
            if k <= segments:  # k segments have a maximum each: the k-th best of these is a bound
                low = float_key(tl.min(maxima))
                high = float_key(peak) + 1
                while high - low > 1:
                    middle = (low + high) >> 1
                    if tl.sum((maxima >= float_of_key(middle)).to(tl.int32)) >= k:
                        low = middle
                    else:
                        high = middle
                bound = float_of_key(low)
        elif p < 1.0:
            # all tokens of mass 2**-j or less weigh at most this sum: if that is at most 1 - p, none of them is kept
            low_j = 0
            high_j = 64
            while high_j - low_j > 1:
                j = (low_j + high_j) >> 1
                if tl.sum(tl.minimum(sums, tl.math.exp2(j * -1.0) * SEGMENT)) <= (1.0 - p) * total * 0.999:
                    high_j = j
                else:
                    low_j = j
            floor = tl.where(high_j < 64, tl.math.exp2(high_j * -1.0), 0.0)
        cut = tl.where(by_rank, 0.0, least_mass)  # top-p needs the whole mass of the k best, before min-p
        wanted = (maxima >= bound) & (share > floor) & (share >= cut)
        tl.store(lists[2] + tl.cumsum(wanted.to(tl.int32)) - 1, s, mask=wanted)
        stop = tl.sum(wanted.to(tl.int32)) * SEGMENT
        tl.debug_barrier()

        count = 0
        weight = tl.zeros([TILE * SEGMENT], tl.float32)  # added up once, after the loop
        worst = tl.full([TILE * SEGMENT], float("inf"), tl.float32)
        for start in range(0, stop, TILE * SEGMENT):
            x, token = _fetch(start, stop, False, lists, source, vocabulary, TILE, SEGMENT, NODES)
            mass = tl.math.exp2((x - base) * scale)
            listed = (x >= bound) & (mass > floor) & (mass >= cut)
            slot = count + tl.cumsum(listed.to(tl.int32)) - 1
            tl.store(lists[0] + slot, x, mask=listed & (slot < LIST))
            tl.store(lists[1] + slot, token, mask=listed & (slot < LIST))
            count += tl.sum(listed.to(tl.int32))
            weight += tl.where(listed, mass, 0.0)
            worst = tl.minimum(worst, tl.where(listed, x, float("inf")))
        packed = count <= LIST
        stop = tl.where(packed, count, stop)
        tl.debug_barrier()

        last = float_key(tl.min(worst))  # the key of the last value that is kept
        if by_rank:
            total = tl.sum(weight)
            high = float_key(peak) + 1
            while high - last > 1:  # the largest value that k tokens reach
                middle = (last + high) >> 1
                reached = 0
                reached_mass = 0.0
                for start in range(0, stop, TILE * SEGMENT):
                    x, _ = _fetch(start, stop, packed, lists, source, vocabulary, TILE, SEGMENT, NODES)
                    reached += tl.sum((x >= float_of_key(middle)).to(tl.int32))
                    reached_mass += tl.sum(tl.where(x >= float_of_key(middle), tl.math.exp2((x - base) * scale), 0.0))
                if reached >= k:
                    last = middle
                    total = reached_mass
                else:
                    high = middle
        above = 0.0  # the mass of what is better than the last value
        enough = float("inf")
        if p < 1.0:
            enough = p * total
            low = last - 1
            last = float_key(peak)
            while last - low > 1:  # the smallest value with less than p above it
                middle = (low + last) >> 1
                mass_above = 0.0
                for start in range(0, stop, TILE * SEGMENT):
                    x, _ = _fetch(start, stop, packed, lists, source, vocabulary, TILE, SEGMENT, NODES)
                    mass_above += tl.sum(tl.where(x > float_of_key(middle), tl.math.exp2((x - base) * scale), 0.0))
                if mass_above < enough:
                    last = middle
                    above = mass_above
                else:
                    low = middle
        border = float_of_key(last)
        # of equal tokens at the border the first ones are kept, until the mass is reached
        border_mass = tl.math.exp2((border - base) * scale)
        ties = 0
        best = -float("inf")
        at = NOWHERE
        key = tl.load(seed + batch)
        position = tl.load(positions + row)
        for start in range(0, stop, TILE * SEGMENT):
            x, token = _fetch(start, stop, packed, lists, source, vocabulary, TILE, SEGMENT, NODES)
            tie = (x == border).to(tl.int32)
            rank = ties + tl.cumsum(tie) - 1
            ties += tl.sum(tie)
            kept = (x > border) | ((x == border) & (above + rank.to(tl.float32) * border_mass < enough))
            kept = kept & (tl.math.exp2((x - base) * scale) >= least_mass)
            score = (x - base) * (1.0 / t) + gumbel(uniforms_of(key, position, token))
            score = tl.where(kept, score, -float("inf"))
            top = tl.max(score)
            if top > best:
                best = top
                at = tl.min(tl.where(score == top, token, NOWHERE))
    else:
        blocks = (vocabulary + BLOCK - 1) // BLOCK
        maxima = tl.load(part_max + row * SEGMENTS + s, mask=s < blocks, other=-float("inf"))
        values = tl.load(part_value + row * SEGMENTS + s, mask=s < blocks, other=-float("inf"))
        token = tl.load(part_token + row * SEGMENTS + s, mask=s < blocks, other=NOWHERE)
        score = values + (maxima - finite(tl.max(maxima))) * (1.0 / tl.where(t > 0.0, t, 1.0))
        at = tl.min(tl.where(score == tl.max(score), token, NOWHERE))
    tl.store(tokens + row, tl.minimum(at, vocabulary - 1).to(tl.int64))  # if NaN was found, stay in bounds


def scan_plan(*, rows: int, vocabulary: int, nodes: int, arch: int) -> Plan:
    """Blocks depend on the vocabulary alone: one row or sixty, a token's arithmetic is the same to the last bit."""
    segments = next_power_of_2(-(-vocabulary // SEGMENT))
    block = min(2048, segments * SEGMENT)
    return Plan(
        grid=(-(-vocabulary // block), rows),
        constants={"SEGMENTS": segments, "SEGMENT": SEGMENT, "BLOCK": block, "NODES": nodes, "PDL": arch >= 90},
        options={"num_warps": 4} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def select_plan(*, rows: int, vocabulary: int, nodes: int, arch: int) -> Plan:
    segments = next_power_of_2(-(-vocabulary // SEGMENT))
    tile = min(32 if arch < 100 else 16, segments)  # 255 registers hold 16 tokens a thread there, not quite elsewhere
    return Plan(
        grid=(rows,),
        constants={
            "SEGMENTS": segments, "SEGMENT": SEGMENT, "BLOCK": min(2048, segments * SEGMENT), "TILE": tile,
            "LIST": min(LIST, segments * SEGMENT), "NODES": nodes, "PDL": arch >= 90,
        },
        options={"num_warps": max(1, tile // (4 if arch < 100 else 2))} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::sample_tokens", mutates_args=())
def _launch(
    logits: Tensor, positions: Tensor, seed: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    repetition_penalty: Tensor, biased: Tensor, logit_bias: Tensor, seen: Tensor, draft_tokens: Tensor | None,
    ancestors: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, rows, vocabulary = logits.shape
    arch = architecture(logits.device)
    shape = {"rows": batch * rows, "vocabulary": vocabulary, "nodes": 0 if draft_tokens is None else rows, "arch": arch}
    scan, select = scan_plan(**shape), select_plan(**shape)
    segments, room = select.constants["SEGMENTS"], select.constants["LIST"]
    part_max, part_value = (logits.new_empty(batch, rows, segments, dtype=torch.float32) for _ in range(2))
    part_token, chosen = (logits.new_empty(batch, rows, segments, dtype=torch.int32) for _ in range(2))
    list_score = logits.new_empty(batch, rows, room, dtype=torch.float32)
    list_token = logits.new_empty(batch, rows, room, dtype=torch.int32)
    tokens = torch.empty_like(positions)
    inputs = (
        logits, positions, seed, temperature, top_k, top_p, min_p, repetition_penalty, biased, logit_bias, seen,
        positions if draft_tokens is None else draft_tokens, positions if ancestors is None else ancestors,
    )  # fmt: skip
    sizes = (*logits.stride()[:2], rows, vocabulary)
    scan.launch(scan_kernel, *inputs, part_max, part_value, part_token, *sizes)
    select.launch(
        select_kernel, *inputs, part_max, part_value, part_token, chosen, list_score, list_token, tokens, *sizes
    )
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
    Masses are sums in float32, so a token whose border lies within 1e-7 of top-p may fall on either side of it.
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
