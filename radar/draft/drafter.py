"""Draft calls on static buffers: one from the root's context, then one for each level of the tree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.kv_cache import StaticKVCache
from radar.tree import DraftTree, causal_ancestors
from radar_kernels import topk_confidence, tree_attention

__all__ = ["Drafter"]


class Drafter:
    """Grows the draft tree of one round.

    The draft's cache holds pairs (token t + 1, feature t) of the verified text; above them, as scratch, the beam nodes
    of the round: level d, beam node i in column (d - 1) k + i.

    Args:
        draft: the head, on the target's device and dtype.
        embed_tokens: the target's embedding, which the head shares.
        config: the tree's shape.
        max_length: pairs that the cache holds.
        max_rows: the most rows of `extend`.
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
        self._causal = causal_ancestors(rows, weight.device)
        self._root_scores = torch.zeros((batch_size, 1), device=weight.device)
        self._d2t = draft.d2t if draft.config.draft_vocab_size < draft.config.vocab_size else None

    def extend(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor | int) -> Tensor:
        """Add verified pairs to the cache.

        Args:
            tokens: [B, A], each the token after the one whose feature stands beside it.
            aux_hidden_states: the target's taps [B, A, taps * hidden].
            count: how many of the A rows are real, [B] or a number; the rest is padding.

        Returns:
            The head's hidden states [B, A, hidden].
        """
        rows = tokens.shape[1]
        positions = self.cache.length[:, None] + self._rows[:rows]
        hidden = self._forward(
            tokens, self.draft.fuse(aux_hidden_states), positions, self.cache.length, self._causal[:, :rows]
        )
        self.cache.length += count
        return hidden

    def begin(self, tokens: Tensor, aux_hidden_states: Tensor, count: Tensor) -> None:
        """The round's first draft call: add the 1 <= count <= A pairs that the last round verified, propose level 1."""
        hidden = self.extend(tokens, aux_hidden_states, count)
        last = (count - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        hidden = hidden.gather(1, last)
        level = topk_confidence(self.draft.logits(hidden), self._root_scores, self.config.tree_top_k, d2t=self._d2t)
        self.tree.start(level, hidden, self.hidden)

    def step(self) -> None:
        """One more draft call: expand the beam of the newest level."""
        tree, base = self.tree, self.cache.length
        depth = tree.calls - 1  # of the beam below level 1
        positions = (base + depth)[:, None].expand_as(tree.beam_tokens)
        column = base + depth * self.config.tree_top_k
        hidden = self._forward(tree.beam_tokens, self.hidden, positions, column, tree.beam_ancestors)
        level = topk_confidence(self.draft.logits(hidden), tree.beam_scores, self.config.tree_top_k, d2t=self._d2t)
        tree.grow(level, hidden, self.hidden)

    def reset(self) -> None:
        self.cache.reset()

    def _forward(self, tokens: Tensor, hidden: Tensor, positions: Tensor, start: Tensor, ancestors: Tensor) -> Tensor:
        """Write the rows' keys at `start` [B] and let them see the verified pairs and their `ancestors` columns."""
        base = self.cache.length

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache.write(0, key, value, start)
            return tree_attention(query, keys, values, base, ancestors)

        return self.draft(self.embed_tokens(tokens), hidden, positions, attend)  # type: ignore[no-any-return]
