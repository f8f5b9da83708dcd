"""The target: a stock transformers model with a static cache and taps. No modelling code is copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from radar.errors import UsageError
from radar.target.attention import Seen, causal_ancestors
from radar.target.bound import BoundModel
from radar.target.cache import StaticKVCache
from radar.target.checks import check_target, vocabulary_size
from radar.target.entries import Entries, Rider
from radar.target.families import cache_heads, layer_needs
from radar.target.fingerprint import Fingerprint
from radar.target.page_pool import pages_of
from radar.target.pages import PagedKVCache
from radar.target.prompt_attention import LEAST_ROWS, Chain, has_flash
from radar.target.ranks import ranks_of
from radar_kernels import Share, VerifyTree
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import PAGE

__all__ = ["TargetModel", "default_tap_layers", "resolve_tap_layers"]


def default_tap_layers(num_layers: int) -> tuple[int, int, int]:
    """EAGLE-3's low, middle and high feature as `hidden_states` indices (0: embeddings, i: output of layer i - 1)."""
    return (2, num_layers // 2, num_layers - 3)


def resolve_tap_layers(num_layers: int, tap_layers: Sequence[int] | None) -> tuple[int, ...]:
    """The taps named, or the default's. Raises UsageError for indices that a model of `num_layers` does not have."""
    if tap_layers is not None and (
        not isinstance(tap_layers, Sequence) or not all(type(layer) is int for layer in tap_layers)
    ):
        raise UsageError(f"tap_layers must be hidden_states indices, such as (2, 16, 29), got {tap_layers!r}")
    taps = default_tap_layers(num_layers) if tap_layers is None else tuple(tap_layers)
    if any(not 0 <= layer < num_layers for layer in taps):
        raise UsageError(
            f"tap_layers must be hidden_states indices from 0 to {num_layers - 1} for a model of {num_layers} layers "
            f"(the last state is normed and no feature), got {list(taps)}"
            + (" by default: name others" if tap_layers is None else "")
        )
    return taps


class TargetModel:
    """A causal language model that verifies trees.

    Args:
        model: a loaded model of a supported family. It is left as it is outside of a forward (`BoundModel`).
        max_length: tokens that the cache holds, prompt and output together.
        max_rows: the most rows of one forward.
        batch_size: rows of the batch; those of several hold pages, which the host gives them (`PagedKVCache`).
        cache_tokens: of several rows, as in `PagedKVCache`.
        tap_layers: `hidden_states` indices for the draft head; None: EAGLE-3's default; (): no taps.

    Attributes:
        by_paths: whether nodes see each other by their paths, not by ancestor words.
        ranks: that hold the model together; None: this process has all of it.

    Raises:
        UsageError: for what `check_target` refuses, tap indices that the model does not have, or too few
            `cache_tokens`.
    """

    def __init__(
        self,
        model: Any,  # a PreTrainedModel; its own annotations differ between releases
        *,
        max_length: int,
        max_rows: int,
        batch_size: int = 1,
        cache_tokens: int | None = None,
        tap_layers: Sequence[int] | None = None,
    ) -> None:
        config = model.config
        check_target(model, max_length, max_rows)
        num_layers, ranks = int(config.num_hidden_layers), ranks_of(model)
        kv_heads, head_dim = cache_heads(model)
        self.ranks = ranks
        self.bound = BoundModel.of(model)
        self.bound.refresh()
        self.tap_layers = resolve_tap_layers(num_layers, tap_layers)
        self.max_length = max_length
        self.max_rows = max_rows
        self.vocab_size = vocabulary_size(model)
        self.hidden_size = int(config.hidden_size)
        self.device = model.device
        self.dtype = model.dtype
        self.embed_tokens: nn.Module = model.get_input_embeddings()
        sizes: dict[str, Any] = {
            "num_layers": num_layers,
            "batch_size": batch_size,
            "num_kv_heads": kv_heads // (1 if ranks is None else ranks.size),
            "capacity": PAGE * pages_of(max_length + max_rows),  # of one row as of several: work is cut by it
            "head_dim": head_dim,
            "dtype": self.dtype,
            "device": self.device,
        }
        self.cache: StaticKVCache = (
            StaticKVCache(**sizes) if batch_size == 1 else PagedKVCache(**sizes, cache_tokens=cache_tokens)
        )
        needs = [layer.within(self.cache.capacity) for layer in layer_needs(model)]
        self.by_paths = self.device.type == "cuda" or any(layer.any for layer in needs)
        # FlashAttention-2 as PyTorch has it knows no softcap: all of such a prompt goes in small chunks
        self.has_flash = has_flash(self.device, self.dtype, self.cache.keys.shape[-1]) and not any(
            layer.softcap for layer in needs
        )
        self._causal: dict[int, Tensor] = {}  # ancestors of chains, by rows
        self._rows = torch.arange(max_rows, device=self.device)

    def row(self, index: int) -> TargetModel:
        """The target of one row of the batch, in the same cache."""
        return self._with(self.cache.row(index))

    def first(self, count: int) -> TargetModel:
        """The target of the first `count` rows of the batch, in the same cache."""
        return self._with(self.cache.first(count))

    def _with(self, cache: StaticKVCache) -> TargetModel:
        view = copy.copy(self)
        view.cache, view._causal = cache, {}
        return view

    def refresh(self) -> Fingerprint:
        """Take the model as it is now; see `BoundModel.refresh`."""
        return self.bound.refresh()

    def verify(self, input_ids: Tensor, depths: Tensor, ancestors: Tensor) -> tuple[Tensor, Tensor]:
        """Run N rows that see the committed cache and, among themselves, their ancestors. Commits nothing.

        Args:
            input_ids: [B, N].
            depths: [B, N] positions behind the committed text, 0 for the next token.
            ancestors: [B, N, W] words as in `VerifyTree`.

        Returns:
            Logits [B, N, vocabulary], and the taps side by side, low to high [B, N, taps * hidden].
        """
        inputs = (input_ids, depths, self._seen(ancestors), self.cache.length)
        with self.bound.running(self.cache, self.tap_layers):
            return self._fit(self.bound.scores(self.tap_layers, *inputs))

    def _seen(self, ancestors: Tensor) -> Seen:
        """What nodes see of each other. On a GPU as paths: what a node says is what it would say as a token of a text,
        bit for bit, wherever that was cut into chunks. Windows, softcaps and sinks want paths everywhere."""
        return ancestor_paths(ancestors, ancestors.shape[1]) if self.by_paths else ancestors

    def verify_shared(self, tree: VerifyTree, share: Share, rider: Rider | None = None) -> tuple[Tensor, Tensor]:
        """`verify` for the nodes of all rows' trees that a share names, and no others but a rider's tokens.

        Returns:
            Logits [T, 1, vocabulary] and taps [T, 1, taps * hidden] of the share's nodes and the rider's tokens.
        """
        assert isinstance(self.cache, PagedKVCache)  # of several rows
        ids, depths, seen, start, cache = Entries.of(tree, share, self.cache, rider, by_paths=self.by_paths)
        with self.bound.running(cache, self.tap_layers):
            return self._fit(self.bound.scores(self.tap_layers, ids, depths, seen, cache.length, start=start))

    def verify_chain(self, input_ids: Tensor, *, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`verify` for N tokens [B, N] that follow the committed ones; see `advance`.

        Hundreds of them go through PyTorch's attention (`has_flash`): as many as fit `max_length`, if all are real.

        Args:
            keep: [M] indices of the rows whose logits are made, the same in the whole batch; None: those of all rows.
        """
        length, rows = self.cache.length, input_ids.shape[1]
        if rows >= LEAST_ROWS and self.has_flash:
            depths, seen = torch.arange(rows, device=self.device)[None], Chain.behind(length, rows)
            inputs: tuple[Any, ...] = (input_ids, depths, seen, length)
        else:
            ids, depths, ancestors = self.chain(input_ids)
            inputs = (ids, depths, self._seen(ancestors), length)
        with self.bound.running(self.cache, self.tap_layers):
            return self._fit(self.bound.scores(self.tap_layers, *inputs, keep=keep))

    def _fit(self, scores: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        width = scores[0].shape[-1]
        if width != self.vocab_size:
            raise UsageError(
                f"the target's logits are {width} wide and its vocabulary has {self.vocab_size} ids: change both with "
                "model.resize_token_embeddings"
            )
        return scores

    def chain(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of `verify` for N tokens [B, N] that follow one another."""
        batch, rows = input_ids.shape
        if rows not in self._causal:  # each its own: attention goes through all columns that the words stand for
            self._causal[rows] = causal_ancestors(rows, self.device).expand(batch, -1, -1).contiguous()
        return input_ids, self._rows[None, :rows], self._causal[rows]

    def advance(self, count: Tensor | int) -> None:
        """Commit the first `count` rows of the last `verify_chain`."""
        self.cache.length += count
