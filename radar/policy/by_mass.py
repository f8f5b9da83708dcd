"""A number of nodes by what they are worth to the draft: a rule that goes with any stop policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.policy.around import Around
from radar.policy.base import StopPolicy

__all__ = ["NodesByMass"]


class NodesByMass(Around):
    """Verifies as many of the best nodes as pay: those whose summed probability, less their price, is the most.

    Args:
        policy: says when to stop drafting.
        nodes: numbers to choose among, the root included.
        prices: of each, in tokens: tokens per second times the seconds of a verification, of all less that of the
            first is enough. `radar.train.contenders` makes them of a cost table.
    """

    nodes: tuple[int, ...] = ()  # its own, not the policy's

    def __init__(self, policy: StopPolicy, nodes: Sequence[int], prices: Sequence[float]) -> None:
        if len(nodes) != len(prices) or not nodes or any(a >= b for a, b in pairwise(nodes)):
            raise UsageError(f"NodesByMass: needs ascending nodes and a price of each, got {nodes!r} and {prices!r}")
        if not all(isinstance(n, int) and 2 <= n <= 256 for n in nodes):
            raise UsageError(f"NodesByMass: nodes must be integers from 2 to 256, got {nodes!r}")
        if not all(math.isfinite(price) for price in prices):
            raise UsageError(f"NodesByMass: prices must be finite numbers of tokens, got {prices!r}")
        super().__init__(policy)
        self.nodes, self.prices = tuple(nodes), tuple(map(float, prices))

    def __repr__(self) -> str:
        prices = ", ".join(f"{price:.3g}" for price in self.prices)
        return f"NodesByMass({self.policy!r}, {list(self.nodes)}, [{prices}])"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        super().bind(batch_size, tree, device)
        self._prices = torch.tensor(self.prices, device=device)

    def choose(self, mass: Tensor) -> Tensor:
        return (mass - self._prices).argmax(-1)
