"""Attention of a prompt's many rows, a chain behind the committed text, by PyTorch's FlashAttention-2.

`radar.target.attention` serves the few rows of a round, in kernels of ours. Here there are hundreds or thousands.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar.target.needs import PLAIN, Needs

__all__ = ["LEAST_ROWS", "MOST_ROWS", "Chain", "attend_chain", "has_flash"]

LEAST_ROWS = 512
MOST_ROWS = 4096
"""Of a chunk, the last of a prompt aside. More are no faster, and the MLP of an 8B model takes 60 KB a row."""


class Chain(NamedTuple):
    """Rows that follow the committed text and one another, whose number the host knows; the text's it need not.

    Attributes:
        rows: [2] int32: 0 and their number.
        keys: [B, 2] int32: 0 and where the keys that the last of them sees end.
    """

    rows: Tensor
    keys: Tensor

    @classmethod
    def behind(cls, length: Tensor, rows: int) -> Chain:
        """`rows` of them behind `length` [B] tokens."""
        borders = torch.arange(0, rows + 1, rows, dtype=torch.int32, device=length.device)
        return cls(borders, F.pad((length + rows).int()[:, None], (1, 0)))


@functools.cache
def has_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's FlashAttention-2 serves such heads."""
    if device.type != "cuda":
        return False
    row = torch.empty((1, 1, 1, head_dim), dtype=dtype, device=device)
    return head_dim % 8 == 0 and torch.backends.cuda.can_use_flash_attention(
        torch.backends.cuda.SDPAParams(row, row, row, None, 0.0, True, False)
    )


def attend_chain(query: Tensor, key: Tensor, value: Tensor, chain: Chain, scale: float, needs: Needs = PLAIN) -> Tensor:
    """Let each row see the cache up to its own.

    Args:
        query: [B, H, N, D].
        key, value: [B, KV, S, D], the cache, in which the rows' own are stored.
        chain: of the N rows.
        scale: factor on the scores.
        needs: of the layer.

    Returns:
        [B, N, H, D].
    """
    if not has_flash(query.device, query.dtype, query.shape[-1]):
        return _plain(query, key, value, chain, scale, needs)
    assert needs.softcap is None  # the op knows none
    # this op aligns the chain with the last key, takes fewer heads of keys, and reads lengths on the device
    window = {} if needs.window is None else {"window_size_left": needs.window - 1, "window_size_right": 0}
    found = []
    for q, k, v, ends in zip(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), chain.keys, strict=True
    ):
        mixed, total, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, chain.rows, ends, len(q), len(k), 0.0, True, False, scale=scale, **window
        )
        if needs.sink is not None:  # of the softmax's sum, whose logarithm [H, N] is `total`, the keys have this share
            share = (total.view(q.shape[1], len(q)) - needs.sink.float()[:, None]).sigmoid()
            mixed = (mixed * share.T[..., None]).to(q.dtype)
        found.append(mixed)
    return torch.stack(found)


def _plain(query: Tensor, key: Tensor, value: Tensor, chain: Chain, scale: float, needs: Needs) -> Tensor:
    """`attend_chain` in plain PyTorch: the definition of correct."""
    place = torch.arange(key.shape[2], device=key.device)
    last = chain.keys[:, 1:, None] - query.shape[2] + torch.arange(query.shape[2], device=key.device)[:, None]
    mask = place <= last
    if needs.window is not None:
        mask &= place > last - needs.window
    beyond = (place >= chain.keys[:, 1:])[:, None, :, None]  # scratch rows hold anything
    key, value = key.masked_fill(beyond, 0.0), value.masked_fill(beyond, 0.0)
    if needs.softcap is None and needs.sink is None:
        mixed = F.scaled_dot_product_attention(query, key, value, mask[:, None], scale=scale, enable_gqa=True)
        return mixed.transpose(1, 2)
    key, value = (x.float().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scale
    if needs.softcap is not None:
        scores = needs.softcap * torch.tanh(scores / needs.softcap)
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    rest = torch.full_like(scores[..., :1], -torch.inf)
    if needs.sink is not None:
        rest = needs.sink.float()[None, :, None, None].expand_as(rest)
    weights = torch.cat((scores, rest), -1).softmax(-1)[..., :-1]
    return (weights @ value).transpose(1, 2).to(query.dtype)
