"""The next token of every tree node, sampled with noise that depends on seed, position and token alone."""

from typing import Any

import torch
from torch import Tensor

from radar_kernels import reference_sampling
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, next_power_of_2
from radar_kernels._sampling_kernels import narrow_kernel, scan_kernel, select_kernel
from radar_kernels.reference_sampling import NO_TOKEN, SamplingState, greedy_tokens

__all__ = ["NO_TOKEN", "SamplingState", "greedy_tokens", "sample_tokens"]

SEGMENT = 128  # tokens whose best score is kept, for top-k
BLOCK = 2048  # tokens a program reads at once
PART = 256  # tokens whose best noisy score is kept; top-p reads a part again if its best token is not in the nucleus
ROOM = BLOCK // 4  # tokens a block that top-k may keep; if one has more, select_kernel reads the whole row
SHARE = 4096  # tokens whose mass is summed up at once, whoever does it
PROGRAMS = 660  # that narrow the choice, or one a row: five on each of 132 multiprocessors, as many as fit


def scan_plan(*, rows: int, vocabulary: int, nodes: int, packed: bool, arch: int) -> Plan:
    """Blocks depend on the vocabulary alone: one row or sixty, a token's arithmetic is the same to the last bit."""
    segments = next_power_of_2(-(-vocabulary // SEGMENT))
    block = min(BLOCK, segments * SEGMENT)
    sizes = {"SEGMENTS": segments, "SEGMENT": SEGMENT, "BLOCK": block, "PART": min(PART, block)}
    return Plan(
        grid=(-(-vocabulary // block), rows),
        constants=sizes | {"NODES": nodes, "PACKED": packed, "PDL": arch >= 90},
        options={"num_warps": max(1, block // 512)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def narrow_plan(*, rows: int, vocabulary: int, nodes: int, packed: bool, arch: int) -> Plan:
    scan = scan_plan(rows=rows, vocabulary=vocabulary, nodes=nodes, packed=packed, arch=arch)
    (blocks, _), constants, options = scan
    tile = min(512, constants["BLOCK"])  # few registers, so that many programs share a multiprocessor
    shares = -(-vocabulary // SHARE)
    constants = constants | {
        "ROOM": min(ROOM, constants["BLOCK"]), "TILE": tile, "NOISY": min(128, tile),
        "SHARE": SHARE, "SHARES": next_power_of_2(shares), "WEIGHED": min(1024, constants["BLOCK"]),
    }  # fmt: skip
    warps = 4 if constants["SEGMENTS"] <= 1024 else 8  # a thread holds the best scores of eight segments
    programs = min(max(blocks, shares), max(1, PROGRAMS // rows))
    # 96 registers, so that five programs share a multiprocessor: worth more than the few bytes that it may spill
    return Plan((programs, rows), constants, options | {"num_warps": warps, "maxnreg": 96})


def select_plan(*, rows: int, vocabulary: int, nodes: int, packed: bool, arch: int) -> Plan:
    narrow = narrow_plan(rows=rows, vocabulary=vocabulary, nodes=nodes, packed=packed, arch=arch)
    constants = {name: size for name, size in narrow.constants.items() if name not in ("NOISY", "WEIGHED")}
    tile = min(4096 if arch < 100 else 2048, constants["SEGMENTS"] * SEGMENT)
    warps = max(2, tile // (512 if arch < 100 else 256))
    return Plan((rows,), constants | {"TILE": tile}, narrow.options | {"num_warps": warps, "maxnreg": 255})


@torch.library.custom_op("radar_kernels::sample_tokens", mutates_args=())
def _launch(
    logits: Tensor, positions: Tensor, seed: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    repetition_penalty: Tensor, biased: Tensor, logit_bias: Tensor, seen: Tensor, draft_tokens: Tensor | None,
    ancestors: Tensor | None, nodes: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, rows, vocabulary = logits.shape
    shape: dict[str, Any] = {
        "rows": batch * rows, "vocabulary": vocabulary, "nodes": 0 if draft_tokens is None else draft_tokens.shape[1],
        "packed": nodes is not None, "arch": architecture(logits.device),
    }  # fmt: skip
    scan, narrow, select = scan_plan(**shape), narrow_plan(**shape), select_plan(**shape)
    segments, block, room, shares = (select.constants[name] for name in ("SEGMENTS", "BLOCK", "ROOM", "SHARES"))

    def of_rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return logits.new_empty(batch, rows, count, dtype=dtype)

    room *= segments * SEGMENT // block
    parts = of_rows(segments), of_rows(segments), of_rows(segments, torch.int32)
    kept = of_rows(room), of_rows(room), of_rows(room, torch.int32), of_rows(2), of_rows(2, torch.int32)
    weights = of_rows(3 * shares)
    tokens = torch.empty_like(positions) if nodes is None else torch.full_like(positions, NO_TOKEN)
    inputs = (
        logits, positions if nodes is None else nodes, positions, seed, temperature, top_k, top_p, min_p,
        repetition_penalty, biased, logit_bias, seen,
        positions if draft_tokens is None else draft_tokens, positions if ancestors is None else ancestors,
    )  # fmt: skip
    sizes = (*logits.stride()[:2], positions.shape[1], vocabulary)
    scan.launch(scan_kernel, *inputs, *parts, *sizes)
    narrow.launch(narrow_kernel, *inputs, *parts, *kept, weights, *sizes)
    select.launch(select_kernel, *inputs, *parts, *kept, weights, tokens, *sizes)
    return tokens


@_launch.register_fake
def _(
    logits: Tensor, positions: Tensor, seed: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    repetition_penalty: Tensor, biased: Tensor, logit_bias: Tensor, seen: Tensor, draft_tokens: Tensor | None,
    ancestors: Tensor | None, nodes: Tensor | None,
) -> Tensor:  # fmt: skip
    return torch.empty_like(positions)


def _check(
    logits: Tensor, positions: Tensor, state: SamplingState, draft_tokens: Tensor | None, ancestors: Tensor | None,
    nodes_of: Tensor | None,
) -> None:  # fmt: skip
    def fail(message: str) -> None:
        raise ValueError(f"sample_tokens: {message}")

    if logits.dim() != 3 or not logits.dtype.is_floating_point or logits.dtype == torch.float64:
        fail(f"logits must be float16, bfloat16 or float32 [B, N, V], got {logits.dtype} {tuple(logits.shape)}")
    batch, nodes, vocabulary = logits.shape
    if nodes_of is not None:
        if (
            draft_tokens is None
            or positions.dim() != 2
            or nodes != 1
            or nodes_of.shape != (batch,)
            or nodes_of.dtype != torch.int64
        ):
            fail(
                f"with nodes, int64 [M], logits must be [M, 1, V] and of a tree, got {nodes_of.dtype} "
                f"{tuple(nodes_of.shape)} and {tuple(logits.shape)}"
            )
        batch, nodes = positions.shape
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
    nodes: Tensor | None = None,
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
        logits: [B, N, V], float16, bfloat16 or float32; -inf bans a token.
        positions: [B, N] int64, the index in the text that the sampled token will have.
        state: the sequences' parameters and history, contiguous; see `SamplingState`.
        draft_tokens: [B, N] int64, the nodes' own tokens, or None: no tree, the history is `state.seen`.
        ancestors: [B, N, ceil(N / 64)] int64, bit c of word w: node 64 w + c is an ancestor, or the node itself.
        nodes: [M] int64, with a tree: logits [M, 1, V] are those of these nodes alone, b * N + n each, or of none (-1).
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [B, N] int64; NO_TOKEN (-1) of nodes without logits, and where a score, bias and penalty included, is NaN, or
            all are -inf. +inf is the best score at temperature 0; above, where the softmax makes NaN of it, there is
            no token either.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: Gumbel-max sampling with the counter-based generator Philox 4x32-10 (Salmon et al., SC 2011).
    """
    _check(logits, positions, state, draft_tokens, ancestors, nodes)
    tree = [tensor.contiguous() for tensor in (draft_tokens, ancestors) if tensor is not None]
    places = () if nodes is None else (nodes.contiguous(),)
    if choose_backend("sample_tokens", backend, logits, positions, *state, *tree, *places) == "torch":
        return reference_sampling.sample_tokens(
            logits, positions, state, draft_tokens=draft_tokens, ancestors=ancestors, nodes=nodes
        )
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    tokens: Tensor = _launch(
        logits,
        positions.contiguous(),
        *(tensor.contiguous() for tensor in state),
        *(tree or (None, None)),
        *(places or (None,)),
    )
    return tokens
