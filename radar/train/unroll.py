"""EAGLE-3's training-time test (arXiv 2503.01840, section 3.2): several draft calls played for all positions at once.

Step s of the test plays draft call s: the query at position t sees the step-0 keys up to t, which stand for verified
tokens, and the keys of steps 1..s at t alone, which stand for its own drafted chain.

One function plays a step, whichever it is: all tensors have the same shapes in all steps, so that `torch.compile` has
one step to compile, not S. A step gets its number as a tensor, and the keys of earlier steps in as many slots as the
last one needs; a slot that is not filled yet is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from radar.draft.eagle3 import Eagle3Draft

__all__ = ["UnrolledAttention", "play_step", "unrolled_losses"]


class UnrolledAttention:
    """The `attend` of step `step` (int64, no dimension); `past[i]` are keys and values of step i [2, B, KV, T, D], for
    i below `step`, and any numbers in the other slots. Called, it leaves those of its own step in `now`, contiguous."""

    def __init__(self, step: Tensor, past: Sequence[Tensor]) -> None:
        self.step, self.past = step, past

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, T, D], key and value [B, KV, T, D] of this step -> [B, T, H, D]."""
        self.now = torch.stack((key, value)).to(self.past[0].dtype)
        batch, heads, rows, size = query.shape
        kv, begun = key.shape[1], self.step > 0
        query = query.reshape(batch, kv, heads // kv, rows, size) * size**-0.5
        first_key, first_value = torch.where(begun, self.past[0], self.now)
        first = torch.einsum("bkgtd,bkud->bkgtu", query, first_key).float()
        position = torch.arange(rows, device=query.device)
        first = first.masked_fill(position[None, :] > position[:, None], -math.inf)
        # Two softmaxes joined by their normalisers: no concatenation of T + s columns is built.
        norm, own = first.logsumexp(-1, keepdim=True), []
        for slot, (k, v) in enumerate((*self.past[1:], self.now), 1):
            seen = begun if slot == len(self.past) else self.step > slot
            score = (query * k[:, :, None]).sum(-1, keepdim=True, dtype=torch.float32).masked_fill(~seen, -math.inf)
            norm = torch.logaddexp(norm, score)
            own.append((score, v))
        out = torch.einsum("bkgtu,bkud->bkgtd", (first - norm).exp().to(value.dtype), first_value)
        for score, v in own:
            out = out + (score - norm).exp().to(value.dtype) * v[:, :, None]
        return out.reshape(batch, heads, rows, size).transpose(1, 2)


def play_step(
    draft: Eagle3Draft, hidden: Tensor, embeds: Tensor, teacher: Tensor, best: Tensor, step: Tensor, past: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step `step` of the test: the head's input [B, T, hidden], then as in `unrolled_losses`, but the step's T tokens
    alone and the teacher's probabilities in float32; `past` as in `UnrolledAttention`.

    Returns:
        (the next step's `hidden`, keys and values of this step [2, B, KV, T, D], loss [], agreement []).
    """
    attend = UnrolledAttention(step, past)
    positions = (torch.arange(hidden.shape[1], device=hidden.device) + step).expand(hidden.shape[:2])
    hidden = draft(embeds, hidden, positions, attend)
    logits, covered = draft.logits(hidden).float(), best >= 0
    # -sum p log q = logsumexp(logits) - sum p * logits, because p sums to one
    entropy = logits.logsumexp(-1) - (teacher * logits).sum(-1)
    loss = (entropy * covered).sum() / covered.sum().clamp(min=1)
    return hidden, attend.now, loss, (logits.detach().argmax(-1) == best).float().mean()


def unrolled_losses(
    draft: Eagle3Draft,
    aux: Tensor,
    embeds: Tensor,
    teacher: Tensor,
    best: Tensor,
    ttt_length: int,
    play: Callable[..., tuple[Tensor, ...]] = play_step,
) -> tuple[Tensor, Tensor]:
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
        (mean cross-entropy of each step [S], over positions that the draft vocabulary covers;
        share of all positions where head and target agree [S]).
    """
    rows, c = aux.shape[1], draft.config
    probabilities = teacher.softmax(-1, dtype=torch.float32)
    hidden, steps = draft.fuse(aux), torch.arange(ttt_length, device=aux.device)
    shape = (2, len(aux), c.num_key_value_heads, rows, c.head_dim)
    # A graph is guarded by what needs a gradient and by which tensors are one: empty slots are as filled ones.
    empty = [embeds.new_zeros(shape, requires_grad=True) for _ in range(max(ttt_length - 1, 1))]
    past, losses, agreement = empty, [], []
    for step in range(ttt_length):
        parts = (tensor[:, step : step + rows] for tensor in (embeds, probabilities, best))
        hidden, now, loss, agreed = play(draft, hidden, *parts, steps[step], past)
        past = [*past[:step], now, *past[step + 1 :]]
        losses.append(loss)
        agreement.append(agreed)
    return torch.stack(losses), torch.stack(agreement)
