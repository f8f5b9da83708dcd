"""EAGLE-3's training-time test (arXiv 2503.01840, section 3.2): several draft calls played for all positions at once.

Step s of the test plays draft call s: the query at position t sees the step-0 keys up to t, which stand for verified
tokens, and the keys of steps 1..s at t alone, which stand for its own drafted chain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from radar.draft.eagle3 import Eagle3Draft

__all__ = ["UnrolledAttention", "unrolled_losses"]


class UnrolledAttention:
    """The `attend` of one training window: call it once per step, it keeps the keys and values of earlier steps."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, T, D], key and value [B, KV, T, D] of this step -> [B, T, H, D]."""
        self.keys.append(key)
        self.values.append(value)
        batch, heads, rows, size = query.shape
        kv = key.shape[1]
        query = query.reshape(batch, kv, heads // kv, rows, size) * size**-0.5
        first = torch.einsum("bkgtd,bkud->bkgtu", query, self.keys[0]).float()
        position = torch.arange(rows, device=query.device)
        first = first.masked_fill(position[None, :] > position[:, None], -math.inf)
        # Two softmaxes joined by their normalisers: no concatenation of T + s columns is built.
        norm = first.logsumexp(-1, keepdim=True)
        own = [(query * k[:, :, None]).sum(-1, keepdim=True, dtype=torch.float32) for k in self.keys[1:]]
        for score in own:
            norm = torch.logaddexp(norm, score)
        out = torch.einsum("bkgtu,bkud->bkgtd", (first - norm).exp().to(value.dtype), self.values[0])
        for score, v in zip(own, self.values[1:], strict=True):
            out = out + (score - norm).exp().to(value.dtype) * v[:, :, None]
        return out.reshape(batch, heads, rows, size).transpose(1, 2)


def unrolled_losses(
    draft: Eagle3Draft, aux: Tensor, embeds: Tensor, teacher: Tensor, best: Tensor, ttt_length: int
) -> tuple[Tensor, Tensor]:
    """Losses of all steps of the training-time test.

    Args:
        draft: the head.
        aux: taps of the target [B, T, 3 * target_hidden].
        embeds: the target's embeddings of tokens 1 .. T + S - 1 [B, T + S - 1, hidden].
        teacher: the target's logits of the draft vocabulary after those tokens [B, T + S - 1, draft_vocab].
        best: draft id of the target's arg-max there, -1 if it is outside the draft vocabulary [B, T + S - 1].
        ttt_length: S.

    Returns:
        (mean cross-entropy of each step [S], over positions that the draft vocabulary covers;
        share of all positions where head and target agree [S]).
    """
    rows = aux.shape[1]
    probabilities = teacher.float().softmax(-1)
    hidden, attend = draft.fuse(aux), UnrolledAttention()
    positions = torch.arange(rows, device=aux.device)[None].expand(aux.shape[0], rows)
    losses, agreement = [], []
    for step in range(ttt_length):
        window = slice(step, step + rows)
        hidden = draft(embeds[:, window], hidden, positions + step, attend)
        logits = draft.logits(hidden).float()
        wanted, covered = best[:, window], best[:, window] >= 0
        # -sum p log q = logsumexp(logits) - sum p * logits, because p sums to one
        entropy = logits.logsumexp(-1) - (probabilities[:, window] * logits).sum(-1)
        losses.append((entropy * covered).sum() / covered.sum().clamp(min=1))
        agreement.append((logits.detach().argmax(-1) == wanted).float().mean())
    return torch.stack(losses), torch.stack(agreement)
