"""EAGLE-3's draft calls on static buffers: one from the root's context, then one for each level of the tree."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.draft.covering import covering
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.fused_head import FusedHead, fused_head
from radar.draft.narrow import NarrowLinears, weight_dtype
from radar.draft.tree import DraftTree
from radar.target.attention import attend, causal_ancestors
from radar.target.cache import StaticKVCache
from radar.target.fingerprint import Fingerprint, fingerprint
from radar.target.layers import FusedLinears, fuse_projections, fused, is_plain_embedding
from radar.target.running import Owner, running
from radar.target.shared import shared
from radar.target.turn import Turn
from radar_kernels import Beam

__all__ = ["Eagle3Drafter", "turn_of"]


class Eagle3Drafter:
    """Grows the draft tree of one round, as `radar.draft.base.Drafter` says.

    The draft's cache holds pairs (token t + 1, feature t) of the verified text; above them, as scratch, the beam nodes
    of the round: level d, beam node i in column (d - 1) k + i.

    Decoders may share a head. Threads take turns on it: every call holds the head's turn, capturing included,
    since its linear layers are fused for that time only.

    Args:
        draft: the head, on the target's device and dtype.
        embed_tokens: the target's embedding, which the head reads unless it has one of its own.
        config: the tree's shape.
        max_length: pairs that the cache holds.
        max_rows: the most rows of `extend`.
        batch_size: rows of the batch.
        draft_dtype: of the weights that draft calls read: int8, or the head's own; None: see `weight_dtype`.
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
        draft_dtype: torch.dtype | None = None,
    ) -> None:
        weight, device = draft.fc.weight, draft.fc.weight.device
        self.draft = draft
        self.embed_tokens = embed_tokens if draft.embed_tokens is None else covering(draft.embed_tokens, embed_tokens)
        self.config = config
        self.feature_size: int = draft.fc.in_features
        self.num_scratch_rows = config.max_accepted + config.num_draft_columns
        self.tree = DraftTree(batch_size, config, device)
        self.hidden = torch.zeros(
            (batch_size, config.tree_top_k, draft.config.hidden_size), dtype=weight.dtype, device=device
        )
        self.cache = StaticKVCache(
            num_layers=1,
            batch_size=batch_size,
            num_kv_heads=draft.config.num_key_value_heads,
            capacity=max_length + max(max_rows, config.max_accepted) + config.num_draft_columns,
            head_dim=draft.config.head_dim,
            dtype=weight.dtype,
            device=device,
        )
        self._chain = causal_ancestors(config.max_accepted, device).expand(batch_size, -1, -1).contiguous()
        self._d2t = draft.d2t if bool(draft.d2t.any()) else None  # all zero: draft ids are the target's
        self._angles: tuple[Tensor, Tensor] | None = None  # by position, for a fused head
        self._bound = shared(draft, _BoundHead)
        self.refresh()
        self.draft_dtype = weight_dtype(draft_dtype, draft, fused=bool(self._bound.heads))
        self._bound.narrow(draft, self.draft_dtype)
        self._held = self._head  # a graph reads its weights, whoever lets go of it meanwhile

    def refresh(self) -> Fingerprint:
        """Take the head as it is now; see `BoundModel.refresh`."""
        return self._bound.refresh(self.draft)

    @property
    def _head(self) -> FusedHead | None:
        return self._bound.heads.get(self.draft_dtype)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._bound.turn.taken(), fused(self._bound.groups), running(self._bound.owner, self.cache):
            yield

    def extend(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor | int) -> None:
        """Add verified pairs to the cache.

        Args:
            tokens: [B, A], each the token after the one whose feature stands beside it.
            aux_hidden_states: the target's taps [B, A, taps * hidden].
            count: how many of the A rows are real, [B] or a number; the rest is padding.
        """
        positions = self.cache.length[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        # keys and values alone: the layers are not fused, since a group begins with the queries
        with self._bound.turn.taken():
            embeds, hidden = self._embed(tokens), self.draft.fuse(aux_hidden_states)
            self.cache.write(0, *self.draft.keys(embeds, hidden, positions), self.cache.length)
        self.cache.length += count

    def begin(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor) -> None:
        """The round's first draft call: add the 1 <= count <= A pairs that the last round verified, propose level 1."""
        with self._running():
            head = self._head
            hidden = (self.draft if head is None else head).fuse(aux_hidden_states)
            seen = self._chain[:, : tokens.shape[1]]
            logits = self._logits(self._states(tokens, hidden, seen, count=count))
        self.cache.length += count
        self.tree.start(logits, self._d2t)

    def step(self, alive: Tensor | None = None) -> None:
        """One more draft call: expand the beam of the newest level in the rows that are `alive` [B] (None: in all)."""
        tree, best = self.tree, self.tree.expanded
        with self._running():
            beam, seen = Beam(tree.beam_parents, tree.calls), tree.beam_ancestors[:, :best]
            logits = self._logits(self._states(tree.beam_tokens[:, :best], self.hidden, seen, beam=beam))
        tree.grow(logits, self._d2t, alive)

    def _states(
        self, tokens: Tensor, hidden: Tensor, ancestors: Tensor, *, beam: Beam | None = None,
        count: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the output layer reads, [B, N, hidden] or of the last real pair [B, 1, hidden]; what the next level is
        fed with goes to `hidden`."""
        head, draft, start = self._head, self.draft, self.cache.length
        if head is not None:
            if self._angles is None:
                self._angles = draft.angles(torch.arange(self.cache.capacity, device=tokens.device), hidden.dtype)
            if is_plain_embedding(self.embed_tokens):
                table: Tensor = self.embed_tokens.weight  # type: ignore[assignment]
            else:
                table = self._embed(tokens).flatten(0, 1)
                tokens = torch.arange(len(table), device=tokens.device).view_as(tokens)
            return head(tokens, table, hidden, self._angles, ancestors, self.hidden, beam=beam, count=count)
        positions = start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        if beam is not None:
            depth = beam.calls - 1
            parents = beam.parents[:, : tokens.shape[1], None]
            hidden = hidden.gather(1, parents.expand(-1, -1, hidden.shape[-1]))
            positions, start = (start + depth)[:, None].expand_as(tokens), start + depth * beam.parents.shape[1]
        hidden = _forward(draft, self._embed(tokens), hidden, positions, start, ancestors)
        if count is not None:
            hidden = hidden.gather(1, (count - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        self.hidden[:, : hidden.shape[1]] = hidden
        return hidden if draft.config.norm_output else draft.norm(hidden)

    def _embed(self, tokens: Tensor) -> Tensor:
        """NO_TOKEN, of a row without a next token, has no embedding."""
        return self.embed_tokens(tokens.clamp(min=0))  # type: ignore[no-any-return]

    def _logits(self, normed: Tensor) -> Tensor:
        head = self._head
        return self.draft.lm_head(normed) if head is None else head.logits(normed)

    def row(self, index: int) -> Eagle3Drafter:
        """See `Drafter`."""
        view = copy.copy(self)
        view.cache = self.cache.row(index)
        return view

    def first(self, count: int, total_tokens: int, expanded: int) -> Eagle3Drafter:
        """See `Drafter`."""
        view = copy.copy(self)
        view.cache, view.tree = self.cache.first(count), self.tree.first(count, total_tokens, expanded)
        view.config, view._chain = view.tree.config, self._chain[:count]
        # between two rounds nobody reads it; rows of all texts at equal distances
        view.hidden = self.hidden.new_zeros(count, expanded, self.hidden.shape[-1])
        return view

    def reset(self) -> None:
        self.cache.reset()


def turn_of(draft: Eagle3Draft) -> Turn:
    """By which the drafters of a head take turns."""
    return shared(draft, _BoundHead).turn


class _BoundHead:
    """What all drafters of a head share: the turn that they take, its fused layers, and copies of its weights.

    Attributes:
        heads: by the dtype of the weights that they read; none for a head that has to run as its modules are.
    """

    def __init__(self) -> None:
        self.turn = Turn("draft head")
        self.owner = Owner()
        self.groups: list[FusedLinears] = []
        self.heads: dict[torch.dtype, FusedHead] = {}
        self._copies: list[NarrowLinears] = []
        self._print: Fingerprint | None = None

    def fuse(self, draft: Eagle3Draft) -> None:
        """Let the head's layers run as kernels, if they are what its class says."""
        self.groups = fuse_projections([draft.midlayer], [draft.fc, draft.lm_head], self.owner)
        head = fused_head(draft, self.groups)
        self.heads, self._copies = {} if head is None else {draft.fc.weight.dtype: head}, []

    def narrow(self, draft: Eagle3Draft, dtype: torch.dtype) -> None:
        """Have one that reads weights of this dtype, from copies if it is not the head's own."""
        with self.turn.taken():
            if not self.heads or dtype in self.heads:
                return
            copies = [NarrowLinears(group.linears, dtype) for group in self.groups]
            head = fused_head(draft, copies)
            assert head is not None
            self.heads[dtype] = head
            self._copies += copies

    def refresh(self, draft: Eagle3Draft) -> Fingerprint:
        """Take the head as it is now."""
        with self.turn.taken():
            now = fingerprint(draft)
            if self._print is None or now.layout != self._print.layout:
                self.groups, self.heads, self._copies = [], {}, []
                if draft.fc.weight.device.type == "cuda":
                    self.fuse(draft)
                    now = fingerprint(draft)
            elif now.values != self._print.values:
                for copy in self._copies:
                    copy.refill()
            self._print = now
            return now


def _forward(
    draft: Eagle3Draft, embeds: Tensor, hidden: Tensor, positions: Tensor, start: Tensor, ancestors: Tensor
) -> Tensor:
    """Write the rows' keys at `start` [B] and let them see the verified pairs and their `ancestors` columns."""
    scale = draft.config.head_dim**-0.5

    def attend_cached(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, start, ancestors, 0, scale)

    return draft(embeds, hidden, positions, attend_cached)  # type: ignore[no-any-return]
