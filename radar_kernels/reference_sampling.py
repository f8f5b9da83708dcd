"""Sampling by shared noise in plain PyTorch: the definition of correct, and what runs on a CPU.

Nothing here asks the host about a device value: these can be captured too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "NO_TOKEN",
    "SamplingState",
    "filter_logits",
    "greedy_tokens",
    "gumbel_noise",
    "mark_seen",
    "philox",
    "sample_tokens",
    "uniforms",
]

NO_TOKEN = -1
"""In place of a token where the scores hold NaN or +inf, or nothing but -inf: nothing can be chosen from them."""

WORD = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85


class SamplingState(NamedTuple):
    """What every sequence is sampled with, all of it on the device: a captured graph sees later changes."""

    seed: Tensor  # [B] int64, the key of the noise
    temperature: Tensor  # [B] float32; 0: the most likely token, no noise and no filter
    top_k: Tensor  # [B] int32; 0: off
    top_p: Tensor  # [B] float32; 1: off
    min_p: Tensor  # [B] float32; 0: off
    repetition_penalty: Tensor  # [B] float32; 1: off
    biased: Tensor  # [B] bool; false: logit_bias is not read
    logit_bias: Tensor  # [B, V] float32, -inf bans a token
    seen: Tensor  # [B, ceil(V / 32)] int32; bit c of word w: token 32 w + c is in the committed text, prompt included


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al., SC 2011): four words of counter and two of key -> four random words.

    Words are int64 from 0 to 2**32 - 1 and broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 64 bits, wrapped: the mask makes the shift a logical one
        c0, c1, c2, c3 = ((b >> 32) & WORD) ^ c1 ^ k0, b & WORD, ((a >> 32) & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def uniforms(seed: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """u(seed, position, token), float32 in (0, 1): [B], [B, N] -> [B, N, V].

    Key = seed; counter = (token // 4, 0, low word of the position, high word); token % 4 picks one of the four words.
    A word w gives min(w * 2**-32 + 2**-33, 1 - 2**-24) in float32: fine near 0, where the noise of a winner comes from.
    """
    quad = torch.arange(-(-vocabulary // 4), device=positions.device)
    zero = torch.zeros_like(quad)
    at, key = positions[..., None], seed[:, None, None]
    words = philox((quad, zero, at & WORD, (at >> 32) & WORD), (key & WORD, (key >> 32) & WORD))
    flat = torch.stack(words, -1).flatten(-2)[..., :vocabulary]
    return (flat.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)


def gumbel_noise(seed: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """-log(-log(1 - u)), float32 [B, N, V]; 1 - u is as uniform as u, and never rounded to 1 when u is small."""
    return -torch.log(-torch.log1p(-uniforms(seed, positions, vocabulary)))


def history(state: SamplingState, vocabulary: int, draft_tokens: Tensor | None, ancestors: Tensor | None) -> Tensor:
    """Tokens in the text before each node's successor: bool [B, N, V], or [B, 1, V] without a tree."""
    bits = (state.seen[..., None] >> torch.arange(32, device=state.seen.device)) & 1
    known = bits.flatten(1)[:, None, :vocabulary].bool()
    if draft_tokens is None or ancestors is None:
        return known
    batch, nodes = draft_tokens.shape
    shifts = torch.arange(64, device=ancestors.device)
    on_path = ((ancestors[..., None] >> shifts) & 1).bool().flatten(2)[:, :, :nodes]
    real = on_path & (draft_tokens >= 0)[:, None, :]  # a row whose text has no next token may still be in a batch
    token = torch.where(real, draft_tokens[:, None, :], vocabulary)  # a spare column takes the rest
    path = torch.zeros(batch, nodes, vocabulary + 1, dtype=torch.bool, device=token.device).scatter(2, token, True)
    return known | path[..., :vocabulary]


def _scores(logits: Tensor, state: SamplingState, draft_tokens: Tensor | None, ancestors: Tensor | None) -> Tensor:
    """Logits [B, N, V] in float32 with bias and repetition penalty."""
    scores = logits.float()
    scores = torch.where(state.biased[:, None, None], scores + state.logit_bias[:, None], scores)
    penalty = state.repetition_penalty[:, None, None]
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(history(state, logits.shape[-1], draft_tokens, ancestors), penalized, scores)


def filter_logits(
    logits: Tensor, state: SamplingState, draft_tokens: Tensor | None = None, ancestors: Tensor | None = None
) -> Tensor:
    """Scores [B, N, V] after bias, penalty, temperature (if not 0) and filters; -inf where a token is filtered out."""
    temperature = torch.where(state.temperature > 0, state.temperature, 1)[:, None, None]
    return _filter(_scores(logits, state, draft_tokens, ancestors), state) / temperature


def _filter(scores: Tensor, state: SamplingState) -> Tensor:
    """Scores [B, N, V], not divided by the temperature yet; -inf where a token is filtered out."""
    vocabulary = scores.shape[-1]
    temperature = torch.where(state.temperature > 0, state.temperature, 1)[:, None, None]
    top_p, min_p = state.top_p[:, None, None], state.min_p[:, None, None]
    value, token = scores.sort(dim=-1, descending=True, stable=True)  # equal values: lower token first
    mass = ((value - value[..., :1]) / temperature).exp()
    count = torch.where((state.top_k > 0) & (state.top_k < vocabulary), state.top_k, vocabulary).long()
    last = value.gather(-1, (count - 1)[:, None, None].expand(*value.shape[:2], 1))
    kept = value >= last  # as many as tie with the k-th
    mass = mass.masked_fill(~kept, 0)
    before = mass.cumsum(-1) - mass
    kept &= (before < top_p * mass.sum(-1, keepdim=True)) | (top_p >= 1)
    kept &= mass >= min_p
    kept[..., 0] = True
    kept |= (state.temperature == 0)[:, None, None]
    kept = torch.zeros_like(kept).scatter(-1, token, kept)
    return torch.where(kept, scores, -torch.inf)


def sample_tokens(
    logits: Tensor,
    positions: Tensor,
    state: SamplingState,
    *,
    draft_tokens: Tensor | None = None,
    ancestors: Tensor | None = None,
    nodes: Tensor | None = None,
) -> Tensor:
    """The token after each node; see `radar_kernels.sample_tokens`."""
    if nodes is not None:  # nodes without logits have no token; a spare row takes what is of none
        whole = logits.new_full((positions.numel() + 1, logits.shape[2]), -torch.inf)
        whole[torch.where(nodes < 0, len(whole) - 1, nodes)] = logits[:, 0]
        logits = whole[:-1].view(*positions.shape, -1)
    scores = _scores(logits, state, draft_tokens, ancestors)
    greedy = state.temperature[:, None, None] <= 0
    scores = torch.where(greedy & scores.isposinf(), torch.finfo(torch.float32).max, scores)
    peak = scores.amax(-1)  # NaN if one of them is
    scores = _filter(scores, state)
    scores = scores - scores.amax(-1, keepdim=True)  # near 0 neither is noise rounded away nor does a division overflow
    temperature = state.temperature[:, None, None]
    noisy = scores / torch.where(temperature > 0, temperature, 1)
    noisy = noisy + gumbel_noise(state.seed, positions, scores.shape[-1])
    scores = torch.where(temperature > 0, noisy, scores)
    token = torch.arange(scores.shape[-1], device=scores.device)
    first = torch.where(scores == scores.amax(-1, keepdim=True), token, scores.shape[-1] - 1)
    return torch.where(peak.isfinite(), first.amin(-1), NO_TOKEN)


def greedy_tokens(logits: Tensor) -> Tensor:
    """What `sample_tokens` does at temperature 0 without bias and penalty: logits [..., V] -> tokens [...], int64."""
    peak, token = logits.max(dim=-1)  # of equal ones the first
    return torch.where(peak > -torch.inf, token, NO_TOKEN)


def mark_seen(seen: Tensor, tokens: Tensor, count: Tensor) -> None:
    """Note tokens of the text; see `radar_kernels.mark_seen`."""
    valid = torch.arange(tokens.shape[1], device=tokens.device) < count[:, None]
    sorted_tokens = torch.where(valid, tokens, -1).sort(1).values
    word = sorted_tokens.clamp(min=0) >> 5
    bit = torch.ones_like(word, dtype=torch.int32) << (sorted_tokens & 31).int()
    known = seen.gather(1, word) & bit != 0
    known[:, 1:] |= sorted_tokens[:, 1:] == sorted_tokens[:, :-1]
    # every bit is added at most once and was not set: the sum is an or
    seen.scatter_add_(1, word, torch.where(known | (sorted_tokens < 0), 0, bit))
