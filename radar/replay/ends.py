"""How rounds end: after which draft call, and with how many verified nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

__all__ = ["Ends", "at_calls", "priced"]


class Ends(NamedTuple):
    """Of N rounds.

    Attributes:
        calls: [N] int64, draft calls, from 1 on.
        chosen: [N] int64, which of the recording's `nodes` are verified; None: as many as the tree has.
    """

    calls: Tensor
    chosen: Tensor | None = None

    def at(self, rounds: Tensor) -> Ends:
        """Of some of them."""
        return Ends(self.calls[rounds], None if self.chosen is None else self.chosen[rounds])

    def pick(self, table: Tensor) -> Tensor:
        """Their entries [N] of [N, T], or, where nodes are chosen, of [N, T, S]."""
        found = at_calls(table, self.calls)
        return found if self.chosen is None else found.gather(1, self.chosen[:, None])[:, 0]

    def nodes_of(self, dataset: RoundDataset) -> Tensor:
        """How many are verified [N] int64."""
        if self.chosen is None:
            return torch.full_like(self.calls, dataset.header.tree.total_tokens)
        return torch.tensor(dataset.header.nodes)[self.chosen]

    def seconds(self, dataset: RoundDataset, costs: CostTable) -> Tensor:
        """What they take [N] float64. Raises ValueError for numbers of nodes that the cost table did not measure."""
        tree, context = dataset.header.tree, dataset.position
        if self.chosen is None:
            return costs.round_seconds(self.calls, context, tree)
        found = torch.zeros(len(self.calls), dtype=torch.float64)
        for at in self.chosen.unique().tolist():  # others may have no price
            here, shape = self.chosen == at, replace(tree, total_tokens=dataset.header.nodes[at])
            found[here] = costs.round_seconds(self.calls[here], context[here], shape) + costs.choice_seconds
        return found


def priced(dataset: RoundDataset, costs: CostTable) -> list[int]:
    """Which of the recording's `nodes` the cost table measured: their places."""
    return [at for at, n in enumerate(dataset.header.nodes) if costs.nodes[0] <= n <= costs.nodes[-1]]


def at_calls(table: Tensor, calls: Tensor) -> Tensor:
    """Of [N, T, ...] for every stop, what belongs to draft calls [N]."""
    return table[torch.arange(len(calls)), calls - 1]
