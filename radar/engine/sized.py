"""The ways in which a round ends where a policy says how many nodes are verified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from radar.draft.tree import DraftTree
from radar.engine.scored import Scored
from radar_kernels import tree_mass

__all__ = ["Sized"]


class Way(Protocol):
    """What ends a round.

    Attributes:
        scored: see `RoundSteps`.
        tokens: of the round [1, A].
    """

    scored: Scored | None
    tokens: Tensor

    def end(self) -> Tensor:
        """Select, verify, accept, commit."""


W = TypeVar("W", bound=Way)


class Sized(Generic[W]):
    """Of one policy.

    Args:
        policy: bound; a `NodePolicy`.
        tree: of the round.
        nodes: numbers that it chooses among.
        ways: the steps that verify so many.
    """

    def __init__(self, policy: Any, tree: DraftTree, nodes: Sequence[int], ways: Sequence[W]) -> None:
        self.policy, self.ways = policy, list(ways)
        self._tree, self._nodes = tree, torch.tensor(nodes, dtype=torch.int32, device=tree.scores.device)
        self._kept: Scored | None = None

    def choice(self) -> Tensor:
        """Which of the ways the policy takes, now that drafting has ended: [1] int64."""
        chosen: Tensor = self.policy.choose(tree_mass(self._tree.scores, self._nodes))
        return chosen

    def keep(self) -> Scored:
        """Where every way that `end_into` takes leaves what it chose tokens by. The ways have been taken before."""
        scored = self.ways[0].scored
        assert scored is not None
        logits, places = scored.logits, torch.arange(scored.places.numel(), device=scored.places.device)
        self._kept = Scored(logits.new_empty(len(places), logits.shape[1]), places[None], self.ways[0].tokens)
        for way in self.ways:
            way.scored = None  # of nobody's text
        return self._kept

    def end_into(self, way: W) -> None:
        """End the round by this way."""
        way.end()
        assert way.scored is not None
        assert self._kept is not None
        torch.index_select(way.scored.logits, 0, way.scored.places.flatten(), out=self._kept.logits)
        way.scored = None  # of a pool that the next way uses
