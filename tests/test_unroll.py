"""The unrolled attention of the draft head's training is decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from small_heads import CONFIG, HIDDEN
from torch import Tensor

from radar.draft.eagle3 import Eagle3Draft
from radar.train.unroll import UnrolledAttention


def masked_attention(window: int) -> Callable[[int], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The definition: all keys of all steps side by side, and a dense mask. Returns step -> that step's `attend`."""
    keys, values = [], []

    def attend_at(step: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.append(key)
            values.append(value)
            eye = torch.eye(window, dtype=torch.bool)
            mask = torch.cat([torch.ones(window, window, dtype=torch.bool).tril(), *[eye] * step], dim=1)
            groups = query.shape[1] // key.shape[1]
            every_key = torch.cat(keys, dim=2).repeat_interleave(groups, 1)
            every_value = torch.cat(values, dim=2).repeat_interleave(groups, 1)
            scores = query @ every_key.transpose(-1, -2) / query.shape[-1] ** 0.5
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ every_value).transpose(1, 2)

        return attend

    return attend_at


def test_unrolled_attention_equals_a_dense_mask_over_all_steps() -> None:
    torch.manual_seed(1)
    draft, window = Eagle3Draft(CONFIG), 9
    first, embeds = torch.randn(2, window, HIDDEN), torch.randn(2, window + 3, HIDDEN)
    ours, dense = UnrolledAttention(), masked_attention(window)
    hidden = other = first
    for step in range(4):
        positions = torch.arange(step, window + step)[None].expand(2, window)
        part = embeds[:, step : step + window]
        hidden = draft(part, hidden, positions, ours)
        other = draft(part, other, positions, dense(step))
        torch.testing.assert_close(hidden, other, rtol=1e-5, atol=1e-5)


def test_unrolled_attention_equals_drafting_token_by_token() -> None:
    torch.manual_seed(2)
    draft, window, at = Eagle3Draft(CONFIG), 7, 4
    first, embeds = torch.randn(1, window, HIDDEN), torch.randn(1, window + 3, HIDDEN)
    ours, hidden = UnrolledAttention(), first
    unrolled = []
    for step in range(4):
        positions = torch.arange(step, window + step)[None]
        hidden = draft(embeds[:, step : step + window], hidden, positions, ours)
        unrolled.append(hidden[:, at])

    cache: list[tuple[Tensor, Tensor]] = []

    def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append((key, value))
        keys, values = (torch.cat(part, dim=2).repeat_interleave(2, 1) for part in zip(*cache, strict=True))
        causal = query.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return out.transpose(1, 2)

    row = draft(embeds[:, : at + 1], first[:, : at + 1], torch.arange(at + 1)[None], decode)[:, -1:]
    for step in range(4):
        torch.testing.assert_close(unrolled[step], row[:, 0], rtol=1e-5, atol=1e-5)
        row = draft(embeds[:, at + step + 1 : at + step + 2], row, torch.tensor([[at + step + 1]]), decode)
