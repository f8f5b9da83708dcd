"""Recipes: what an engine is made of beside the model, so that it can be made again for a model that has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from radar.config import TreeConfig
from radar.draft.drafter import Eagle3Drafter, turn_of
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.fit import TargetSizes, check_fit, default_tree
from radar.engine.base import RoundEngine, choose_engine
from radar.engine.eager import EagerEngine
from radar.engine.fallback import Fallback
from radar.engine.graph import GraphEngine
from radar.engine.plain import PlainEngine
from radar.engine.plain_rows import PlainRows
from radar.engine.prefill import chunk_sizes
from radar.engine.round_rows import RoundRows
from radar.engine.rows import RowsEngine
from radar.errors import UsageError
from radar.policy.base import StopPolicy
from radar.target import adapters, quantised
from radar.target.bound import BoundModel
from radar.target.model import TargetModel
from radar.target.turn import Turn

__all__ = ["PlainRecipe", "RoundRecipe", "RowsRecipe"]


@dataclass(frozen=True)
class PlainRecipe:
    """Of plain decoding; fields as `AutoregressiveDecoder` takes them."""

    max_length: int
    engine: str | None

    def turns(self, model: Any) -> list[Turn]:
        """What a round waits for."""
        return [BoundModel.of(model).turn]

    def build(self, model: Any) -> PlainEngine:
        """An engine for the model as it is now."""
        graphs = _takes_graphs(self.engine, model)
        return PlainEngine(self._target(model), graphs=graphs)

    def build_rows(self, model: Any, batch_size: int, cache_tokens: int | None) -> PlainRows:
        """One of `batch_size` rows."""
        graphs = _takes_graphs(self.engine, model)
        return PlainRows(self._target(model, batch_size, cache_tokens), graphs=graphs)

    def _target(self, model: Any, batch_size: int = 1, cache_tokens: int | None = None) -> TargetModel:
        """The model with a cache of `batch_size` rows."""
        return TargetModel(
            model,
            max_length=self.max_length,
            max_rows=max(chunk_sizes(model.device)),
            tap_layers=(),
            batch_size=batch_size,
            cache_tokens=cache_tokens,
        )


@dataclass
class RoundRecipe:
    """Of rounds; fields as `RadarDecoder` takes them.

    Attributes:
        owns_draft: nobody else uses the head, so that it may follow the model to another device or type.
        policy: in use; it may change.
        tree: None: the device's default, with these `beams`.
    """

    draft: Eagle3Draft
    owns_draft: bool
    policy: StopPolicy
    tree: TreeConfig | None
    max_length: int
    tap_layers: Sequence[int] | None
    engine: str | None
    profile: bool
    fallback: bool
    draft_dtype: torch.dtype | None
    beams: int = TreeConfig().tree_top_k

    def tree_on(self, device: torch.device) -> TreeConfig:
        """Shape of the trees on a device."""
        return replace(default_tree(device), tree_top_k=self.beams) if self.tree is None else self.tree

    def turns(self, model: Any) -> list[Turn]:
        """What a round waits for."""
        return [BoundModel.of(model).turn, turn_of(self.draft)]

    def build(self, model: Any) -> RoundEngine:
        """An engine for the model as it is now. Raises UsageError if the head does not fit it."""
        graphs = _takes_graphs(self.engine, model)
        target, drafter = self._parts(model)
        tree, fallback = self.tree_on(model.device), Fallback() if self.fallback else None
        if graphs:
            return GraphEngine(target, drafter, self.policy, tree, fallback=fallback)
        return EagerEngine(target, drafter, self.policy, tree, profile=self.profile, fallback=fallback)

    def build_rows(self, model: Any, batch_size: int, cache_tokens: int | None) -> RoundRows:
        """One of `batch_size` rows. Raises UsageError if the head does not fit the model."""
        graphs = _takes_graphs(self.engine, model)
        target, drafter = self._parts(model, batch_size, cache_tokens)
        return RoundRows(
            target, drafter, self.policy, self.tree_on(model.device), graphs=graphs, fallback=self.fallback
        )

    def _parts(
        self, model: Any, batch_size: int = 1, cache_tokens: int | None = None
    ) -> tuple[TargetModel, Eagle3Drafter]:
        """The model and the head with caches of `batch_size` rows."""
        rows, draft, tree = max(chunk_sizes(model.device)), self.draft, self.tree_on(model.device)
        taps = draft.config.eagle_aux_hidden_state_layer_ids if self.tap_layers is None else self.tap_layers
        target = TargetModel(
            model,
            max_length=self.max_length,
            max_rows=max(rows, *tree.node_choices),
            tap_layers=taps,
            batch_size=batch_size,
            cache_tokens=cache_tokens,
        )
        if self.owns_draft:
            draft.to(target.device, target.dtype)
        check_fit(draft, _sizes(target), tree)
        drafter = Eagle3Drafter(
            draft,
            target.embed_tokens,
            tree,
            max_length=self.max_length,
            max_rows=rows,
            draft_dtype=self.draft_dtype,
            batch_size=batch_size,
        )
        return target, drafter


@dataclass(frozen=True)
class RowsRecipe:
    """Of several texts at once.

    Attributes:
        one: what they would be made of one by one.
        batch_size, cache_tokens: as the decoders take them.
    """

    one: PlainRecipe | RoundRecipe
    batch_size: int
    cache_tokens: int | None

    def turns(self, model: Any) -> list[Turn]:
        """What a round waits for."""
        return self.one.turns(model)

    def build(self, model: Any) -> RowsEngine:
        """An engine for the model as it is now. Raises UsageError if the head does not fit it."""
        rows = self.batch_size + 1  # a prompt comes in at one of its own
        return self.one.build_rows(model, rows, self.cache_tokens)


def _takes_graphs(engine: str | None, model: Any) -> bool:
    """Whether an engine of that name, as the decoders take it, makes graphs. Raises UsageError where there are none."""
    if choose_engine(engine, model.device) == "eager":
        return False
    outside, advice = adapters.outside_of_graphs(model), "merge the adapters (merge_and_unload)"
    if outside is None:
        outside, advice = quantised.outside_of_graphs(model), "use a model whose weights alone are quantised"
    if outside is not None and engine == "graph":
        raise UsageError(
            f'engine="graph" cannot hold {outside}, which may ask the host in every forward: leave engine= out, or '
            f"{advice}"
        )
    return outside is None


def _sizes(target: TargetModel) -> TargetSizes:
    return TargetSizes(target.hidden_size, target.vocab_size, target.tap_layers, target.device, target.dtype)
