"""The EAGLE-3 draft head (arXiv 2503.01840): one decoder layer over the target's features and the next token.

Module and parameter names are those of the released checkpoints (`fc`, `midlayer.*`, `norm`, `lm_head`, `d2t`, `t2d`).
The module owns no cache: whoever calls it says how its queries attend (`attend`), so decoding and training share it.
What other trainers changed (`norm_before_residual`, `norm_output`, `fc_norm`, ...) is chosen once, by the config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from radar.draft.config import DraftConfig
from radar.draft.rope import attention_factor, inverse_frequencies
from radar.errors import UsageError

__all__ = ["PARTS", "Attend", "Eagle3Draft"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query [B, H, N, D], key [B, KV, N, D], value [B, KV, N, D]) of the new rows -> attention output [B, N, H, D]."""


class _RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        size, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(2 * size, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(2 * size, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(2 * size, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, size, bias=bias)
        self.q_norm = _RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = _RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        batch, rows, _ = x.shape  # [B, N, 2H]
        query = self.q_norm(self.q_proj(x).view(batch, rows, self.num_heads, self.head_dim)).transpose(1, 2)
        out = attend(_rotate(query, cos, sin), *self.keys(x, cos, sin))
        return self.o_proj(out.reshape(batch, rows, -1))  # type: ignore[no-any-return]

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*x.shape[:2], self.num_kv_heads, self.head_dim)
        key = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        return _rotate(key, cos, sin), self.v_proj(x).view(shape).transpose(1, 2)


class _MLP(nn.Module):
    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class _MidLayer(nn.Module):
    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.hidden_norm = _RMSNorm(size, eps)
        self.input_layernorm = _RMSNorm(size, eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _RMSNorm(size, eps)
        self.mlp = _MLP(config)
        self.norm_before_residual = config.norm_before_residual

    def forward(self, embeds: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x, normed = self._inputs(embeds, hidden)
        hidden = (normed if self.norm_before_residual else hidden) + self.self_attn(x, cos, sin, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]

    def keys(self, embeds: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self.self_attn.keys(self._inputs(embeds, hidden)[0], cos, sin)

    def _inputs(self, embeds: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.hidden_norm(hidden)
        return torch.cat((self.input_layernorm(embeds), normed), dim=-1), normed


PARTS = (_MidLayer, _Attention, _MLP, _RMSNorm, nn.Linear, nn.Identity)
"""What a head's layer is made of."""


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Eagle3Draft(nn.Module):
    """Draft head of one layer. `forward` maps (token t+1, feature t) to the hidden state that predicts token t+2.

    Args:
        config: geometry; see `DraftConfig`.

    Attributes:
        embed_tokens: the head's own embedding; None: it reads the target's, and `embeds` come from there.
    """

    inv_freq: Tensor
    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        width, taps, eps = config.target_hidden_size, config.num_aux_hidden_states, config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embedding else None
        self.input_norm = _RMSNorm(taps * width, eps) if config.norm_before_fc else None
        self.fc_norm = nn.ModuleList(_RMSNorm(width, eps) for _ in range(taps)) if config.fc_norm else None
        self.fc = nn.Linear(taps * width, config.hidden_size, bias=False)
        self.midlayer = _MidLayer(config)
        self.norm = _RMSNorm(config.hidden_size, eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(config.vocab_size) < config.draft_vocab_size)
        self.register_buffer("inv_freq", inverse_frequencies(config, self.d2t.device), persistent=False)
        self._attention_factor = attention_factor(config.rope_scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the frequencies in float32 when the module is cast: bfloat16 is off by radians at position 1000."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = inverse_frequencies(self.config, self.inv_freq.device)
        return self

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """Target taps, low to high, side by side [B, N, 3 * target_hidden] -> draft features [B, N, hidden]."""
        return self.fc(self.normed_taps(aux_hidden_states))  # type: ignore[no-any-return]

    def normed_taps(self, aux_hidden_states: Tensor) -> Tensor:
        """What `fc` reads of the taps, of the same shape."""
        if self.input_norm is not None:
            return self.input_norm(aux_hidden_states)  # type: ignore[no-any-return]
        if self.fc_norm is not None:
            taps = aux_hidden_states.chunk(len(self.fc_norm), dim=-1)
            return torch.cat([norm(tap) for norm, tap in zip(self.fc_norm, taps, strict=True)], dim=-1)
        return aux_hidden_states

    def forward(self, embeds: Tensor, hidden: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """One layer over N rows.

        Args:
            embeds: embeddings of the tokens [B, N, hidden].
            hidden: features of the tokens before them: `fuse(taps)` after a verified token, the head's own output
                after a drafted one [B, N, hidden].
            position_ids: rotary positions [B, N].
            attend: see `Attend`.

        Returns:
            What the next level is fed with [B, N, hidden]: hidden states before the final norm, or after it if the
            config says `norm_output`.
        """
        hidden = self.midlayer(embeds, hidden, *self._rotation(position_ids, hidden.dtype), attend)
        return self.norm(hidden) if self.config.norm_output else hidden

    def keys(self, embeds: Tensor, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, KV, N, D] of N rows, which is all that later rows need of them; see `forward`."""
        return self.midlayer.keys(embeds, hidden, *self._rotation(position_ids, hidden.dtype))

    def _rotation(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = self.angles(position_ids, dtype)
        return cos[:, None], sin[:, None]

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotation at positions [...], each [..., D]."""
        angle = position_ids[..., None].float() * self.inv_freq
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        if self._attention_factor != 1.0:
            cos, sin = cos * self._attention_factor, sin * self._attention_factor
        return cos.to(dtype), sin.to(dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the draft vocabulary [B, N, draft_vocab] from what `forward` returned; i means id `i + d2t[i]`."""
        return self.lm_head(hidden if self.config.norm_output else self.norm(hidden))  # type: ignore[no-any-return]

    def target_ids(self) -> Tensor:
        """What the draft ids stand for: ids of the target [draft_vocab_size], int64, each once, in any order."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def set_draft_vocabulary(self, target_ids: Tensor) -> None:
        """Let draft id i stand for the i-th of `target_ids`: `draft_vocab_size` different ids below `vocab_size`."""
        size, vocabulary = self.d2t.shape[0], self.config.vocab_size
        ids = target_ids.to(self.d2t)
        if ids.shape != (size,) or len(ids.unique()) != size or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            raise UsageError(
                f"target_ids must be {size} different ids from 0 to {vocabulary - 1}, got shape {tuple(ids.shape)}"
                + (f" from {int(ids.min())} to {int(ids.max())}, {len(ids.unique())} different" if ids.numel() else "")
            )
        self.d2t.copy_(ids - torch.arange(size, device=self.d2t.device))
        self.t2d.zero_()
        self.t2d[target_ids.to(self.t2d.device)] = True
