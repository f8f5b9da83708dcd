"""Draft calls on static buffers: one from the root's context, then one for each level of the tree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.tree import DraftTree
from radar.target.attention import attend, attending, causal_ancestors
from radar.target.cache import StaticKVCache
from radar.target.compiled import compiled
from radar.target.layers import FusedLinears, fuse_projections, fused
from radar_kernels import topk_confidence

__all__ = ["Drafter"]

_locks: WeakKeyDictionary[Eagle3Draft, threading.Lock] = WeakKeyDictionary()


class Drafter:
    """Grows the draft tree of one round.

    The draft's cache holds pairs (token t + 1, feature t) of the verified text; above them, as scratch, the beam nodes
    of the round: level d, beam node i in column (d - 1) k + i.

    Decoders may share a head. Threads take turns on it: every call holds the head's lock, compiling and capturing
    included, since its linear layers are fused for that time only.

    Args:
        draft: the head, on the target's device and dtype.
        embed_tokens: the target's embedding, which the head shares.
        config: the tree's shape.
        max_length: pairs that the cache holds.
        max_rows: the most rows of `extend`.
        compile: let torch.compile make the forward of `begin` and `step`.
    """

    def __init__(
        self,
        draft: Eagle3Draft,
        embed_tokens: nn.Module,
        config: TreeConfig,
        *,
        max_length: int,
        max_rows: int,
        batch_size: int = 1,
        compile: bool = False,
    ) -> None:
        weight = draft.fc.weight
        self.draft = draft
        self.embed_tokens = embed_tokens
        self.config = config
        self.tree = DraftTree(batch_size, config, weight.device)
        self.hidden = torch.zeros(
            (batch_size, config.tree_top_k, draft.config.hidden_size), dtype=weight.dtype, device=weight.device
        )
        self.cache = StaticKVCache(
            num_layers=1,
            batch_size=batch_size,
            num_kv_heads=draft.config.num_key_value_heads,
            capacity=max_length + max(max_rows, config.max_accepted) + config.num_draft_columns,
            head_dim=draft.config.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )
        rows = max(max_rows, config.max_accepted)
        self._rows = torch.arange(rows, device=weight.device)
        self._causal: dict[int, Tensor] = {}  # ancestors of pairs in a row, by their number
        self._root_scores = torch.zeros((batch_size, 1), device=weight.device)
        self._d2t = draft.d2t if bool(draft.d2t.any()) else None  # all zero: draft ids are the target's

        self._lock = _locks.setdefault(draft, threading.Lock())
        self._fused: list[FusedLinears] = []
        if weight.device.type == "cuda":
            self._fused = fuse_projections(draft, [draft.midlayer], draft.lm_head)
        self._run_first = compiled(self._first) if compile else self._first
        self._run_next = compiled(self._next) if compile else self._next

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock, attending(self.cache), fused(self._fused):
            yield

    def extend(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor | int) -> None:
        """Add verified pairs to the cache.

        Args:
            tokens: [B, A], each the token after the one whose feature stands beside it.
            aux_hidden_states: the target's taps [B, A, taps * hidden].
            count: how many of the A rows are real, [B] or a number; the rest is padding.
        """
        with self._running():
            self._pairs(tokens, aux_hidden_states, self.cache.length, self._chain(tokens.shape[1]))
        self.cache.length += count

    def begin(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor) -> None:
        """The round's first draft call: add the 1 <= count <= A pairs that the last round verified, propose level 1."""
        with self._running():
            ancestors = self._chain(tokens.shape[1])
            hidden, logits = self._run_first(tokens, aux_hidden_states, self.cache.length, ancestors, count)
        self.cache.length += count
        level = topk_confidence(logits, self._root_scores, self.config.tree_top_k, d2t=self._d2t)
        self.tree.start(level, hidden, self.hidden)

    def step(self) -> None:
        """One more draft call: expand the beam of the newest level."""
        tree = self.tree
        with self._running():
            hidden, logits = self._run_next(
                tree.beam_tokens, self.hidden, self.cache.length, tree.calls, tree.beam_ancestors
            )
        level = topk_confidence(logits, tree.beam_scores, self.config.tree_top_k, d2t=self._d2t)
        tree.grow(level, hidden, self.hidden)

    def reset(self) -> None:
        self.cache.reset()

    def _first(
        self, tokens: Tensor, aux_hidden_states: Tensor, length: Tensor, ancestors: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self._pairs(tokens, aux_hidden_states, length, ancestors)
        hidden = hidden.gather(1, (count - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        return hidden, self.draft.logits(hidden)

    def _next(
        self, tokens: Tensor, hidden: Tensor, length: Tensor, calls: Tensor, ancestors: Tensor
    ) -> tuple[Tensor, Tensor]:
        depth = calls - 1  # of the beam below level 1
        positions = (length + depth)[:, None].expand_as(tokens)
        column = length + depth * self.config.tree_top_k
        hidden = self._forward(tokens, hidden, positions, column, ancestors)
        return hidden, self.draft.logits(hidden)

    def _pairs(self, tokens: Tensor, aux_hidden_states: Tensor, length: Tensor, ancestors: Tensor) -> Tensor:
        positions = length[:, None] + self._rows[: tokens.shape[1]]
        return self._forward(tokens, self.draft.fuse(aux_hidden_states), positions, length, ancestors)

    def _chain(self, rows: int) -> Tensor:
        """Ancestor words of `rows` pairs, no more than they need: attention goes through all the words' columns."""
        if rows not in self._causal:
            self._causal[rows] = causal_ancestors(rows, self._rows.device)
        return self._causal[rows]

    def _forward(self, tokens: Tensor, hidden: Tensor, positions: Tensor, start: Tensor, ancestors: Tensor) -> Tensor:
        """Write the rows' keys at `start` [B] and let them see the verified pairs and their `ancestors` columns."""
        scale = self.draft.config.head_dim**-0.5

        def attend_cached(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, start, ancestors, 0, scale)

        return self.draft(self.embed_tokens(tokens), hidden, positions, attend_cached)  # type: ignore[no-any-return]
