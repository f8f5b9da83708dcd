"""EAGLE-3's training-time test (arXiv 2503.01840, section 3.2): several draft calls played for all positions at once.

Step s of the test plays draft call s: the query at position t sees the step-0 keys up to t, which stand for verified
tokens, and the keys of steps 1..s at t alone, which stand for its own drafted chain.

One function plays every step, on tensors of the same shapes: `torch.compile` then has one step to compile, not S. A
step's number is a tensor, and earlier steps' keys are in as many slots as the last step needs; empty ones are masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from radar.draft.eagle3 import Eagle3Draft

__all__ = ["UnrolledAttention", "play_step", "unrolled_losses"]

Play = Callable[..., tuple[Tensor, ...]]


class UnrolledAttention:
    """The `attend` of step `step` (int64, no dimension); `past[i]` are keys and values of step i [2, B, KV, T, D] for
    i below `step`, and finite numbers in other slots. Called, it leaves those of its own step in `now`, contiguous."""

    def __init__(self, step: Tensor, past: Sequence[Tensor]) -> None:
        self.step, self.past = step, past

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, T, D], key and value [B, KV, T, D] of this step -> [B, T, H, D]."""
        self.now = torch.stack((key, value)).to(self.past[0].dtype)
        batch, heads, rows, size = query.shape
        kv, slots = key.shape[1], len(self.past)
        query = query.reshape(batch, kv, heads // kv, rows, size) * size**-0.5
        first_key, first_value = torch.where(self.step > 0, self.past[0], self.now)
        later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
        first = torch.einsum("bkgtd,bkud->bkgtu", query, first_key).float().masked_fill(later, -math.inf)
        # Slot i holds step i and is seen after it; the last one holds this step, seen unless it is the first.
        keys, values = torch.stack((*self.past[1:], self.now), 1)[:, :, :, :, None]  # [slots, B, KV, 1, T, D] each
        unseen = self.step <= torch.arange(1, slots + 1, device=query.device) % slots
        own = (query * keys).sum(-1, dtype=torch.float32).masked_fill(unseen.view(-1, 1, 1, 1, 1), -math.inf)
        # Two softmaxes joined by their normalisers: no concatenation of T + s columns is built.
        norm = torch.cat((first.logsumexp(-1)[None], own)).logsumexp(0)
        out = torch.einsum("bkgtu,bkud->bkgtd", (first - norm[..., None]).exp().to(value.dtype), first_value)
        out += ((own - norm).exp().to(value.dtype)[..., None] * values).sum(0, dtype=value.dtype)
        return out.reshape(batch, heads, rows, size).transpose(1, 2)


def play_step(
    draft: Eagle3Draft, hidden: Tensor, embeds: Tensor, teacher: Tensor, best: Tensor, step: Tensor, past: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Step `step` of the test: the head's input [B, T, hidden], then as in `unrolled_losses`, but the step's T tokens
    alone and the teacher's probabilities in float32; `past` as in `UnrolledAttention`. Returns the next step's
    `hidden`, this one's keys and values [2, B, KV, T, D], and its loss and agreement [2]."""
    attend = UnrolledAttention(step, past)
    positions = (torch.arange(hidden.shape[1], device=hidden.device) + step).expand(hidden.shape[:2])
    hidden = draft(embeds, hidden, positions, attend)
    logits, covered = draft.logits(hidden).float(), best >= 0
    # -sum p log q = logsumexp(logits) - sum p * logits, because p sums to one
    entropy = logits.logsumexp(-1) - (teacher * logits).sum(-1)
    loss = (entropy * covered).sum() / covered.sum().clamp(min=1)
    return hidden, attend.now, torch.stack((loss, (logits.detach().argmax(-1) == best).float().mean()))


def unrolled_losses(
    draft: Eagle3Draft, aux: Tensor, embeds: Tensor, teacher: Tensor, best: Tensor, ttt_length: int, play: Play
) -> Tensor:
    """Losses of all steps of the training-time test.

    Args:
        draft: the head.
        aux: taps of the target [B, T, 3 * target_hidden].
        embeds: the target's embeddings of tokens 1 .. T + S - 1 [B, T + S - 1, hidden].
        teacher: the target's logits of the draft vocabulary after those tokens [B, T + S - 1, draft_vocab].
        best: draft id of the target's arg-max there, -1 if it is outside the draft vocabulary [B, T + S - 1].
        ttt_length: S.
        play: `play_step`, or what it was compiled to.

    Returns:
        [2, S]: mean cross-entropy of each step, over positions that the draft vocabulary covers; share of all
        positions where head and target agree, which has no gradient.
    """
    rows, c = aux.shape[1], draft.config
    hidden, probabilities = draft.fuse(aux), teacher.softmax(-1, dtype=torch.float32)
    # What needs a gradient and which tensors are the same is part of a graph: empty slots are as filled ones.
    shape = (2, len(aux), c.num_key_value_heads, rows, c.head_dim)
    past, results = [embeds.new_zeros(shape, requires_grad=True) for _ in range(max(ttt_length - 1, 1))], []
    for step, number in enumerate(torch.arange(ttt_length, device=aux.device)):
        parts = (tensor[:, step : step + rows] for tensor in (embeds, probabilities, best))
        hidden, now, result = play(draft, hidden, *parts, number, past)
        past = [*past[:step], now, *past[step + 1 :]]
        results.append(result)
    return torch.stack(results, 1)
