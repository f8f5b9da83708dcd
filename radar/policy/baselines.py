"""Stop rules of the literature that need no training, behind the protocol of `radar.policy.base`.

The protocol shows a rule the beam's k scores of each level, so rules made for other signals are told in those; every
docstring says what was simplified. All of them only decide how deep the tree grows: the nodes that are verified
stay EAGLE-2's best. Thresholds are the publications'; `radar.replay.replay` fits them to a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.policy.around import Around
from radar.policy.base import MassRule, Settled, StopPolicy

__all__ = ["DDD", "Capped", "ExpectedGain", "OptTree", "Talon"]


class Capped(Around):
    """Another policy with fewer calls: RADAR as published is `Capped(RadarPolicy(network, sample=True), 8)`.

    (arXiv 2512.14069: the action is drawn, and EAGLE-3's depth 7 bounds it.)
    """

    def __init__(self, policy: StopPolicy, calls: int = 8) -> None:
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
            raise UsageError(f"Capped: calls must be a positive integer, got {calls!r}")
        super().__init__(policy)
        self.calls = calls

    def __repr__(self) -> str:
        return f"Capped({self.policy!r}, {self.calls})"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        super().bind(batch_size, tree, device)
        self._count = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def reset(self) -> None:
        super().reset()
        self._count.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        self._count += 1
        return super().stop(scores) | (self._count >= self.calls)


class ExpectedGain(MassRule):
    """Stop when one more call is expected to add fewer tokens than it costs: continue iff E[A(n+1) - A(n) | x] > price.

    The one-step rule of optimal stopping; the price is (tokens per second) * (seconds of a call). The expectation is
    taken as a function of the beam's summed probability after call n that never falls, so that the rule is one bound on
    that sum per call: `radar.train.contenders` fits them.

    Args:
        mass_by_call: bound after call 1, 2, ...; 0 never stops there, inf always does. Later calls use the last one.
    """

    def __init__(self, mass_by_call: Sequence[float]) -> None:
        if not mass_by_call or not all(value >= 0 for value in mass_by_call):
            raise UsageError(f"ExpectedGain: mass_by_call must be bounds of 0 or more, got {mass_by_call!r}")
        self.mass_by_call = tuple(map(float, mass_by_call))

    def __repr__(self) -> str:
        return f"ExpectedGain([{', '.join(f'{value:.3g}' for value in self.mass_by_call)}])"

    def mass_bounds(self) -> Sequence[float]:
        return self.mass_by_call


class DDD(Settled):
    """Dynamic Depth Decoding (arXiv 2409.00142): stop if log-sum-exp of the beam's scores is below a bound, asked after
    few calls only.

    Published for EAGLE-2: at most 11 calls, asked after calls 5, 7 and 9 because every question cost a wait for the
    GPU. The default bound is that of a later comparison on EAGLE-3 (arXiv 2603.01639); the rule itself is unchanged.
    """

    def __init__(self, bound: float = -0.3, *, checks: Sequence[int] = (5, 7, 9), calls: int = 11) -> None:
        if math.isnan(bound):
            raise UsageError(f"DDD: bound must be a logarithm, got {bound!r}")
        self.bound, self.checks, self.calls = float(bound), tuple(checks), calls

    def __repr__(self) -> str:
        return f"DDD({self.bound:g})"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        asked = [call in self.checks for call in range(1, tree.max_calls + 1)]
        ends = [call >= self.calls for call in range(1, tree.max_calls + 1)]
        self._asked, self._ends = torch.tensor(asked, device=device), torch.tensor(ends, device=device)
        self._call = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        self._call.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        call = self._call.clamp(max=self._asked.shape[0] - 1)
        asked, ends = self._asked.gather(0, call), self._ends.gather(0, call)
        self._call += 1
        return ((scores.logsumexp(dim=-1) < self.bound) & asked) | ends


class Talon(Settled):
    """TALON (arXiv 2601.07353): every level keeps the nodes within `share` of its best one; stop when the tree is full.

    Published: level 1 keeps the k best, `share` 0.03, and drafting ends at `total_tokens` nodes. Here kept nodes are
    counted among the k of the beam (there a level may be wider), and they only fill the budget: what is verified are
    the best nodes of all that were drafted, kept or not.
    """

    def __init__(self, share: float = 0.03) -> None:
        if not 0.0 < share <= 1.0:
            raise UsageError(f"Talon: share must be above 0 and at most 1, got {share!r}")
        self.share = float(share)

    def __repr__(self) -> str:
        return f"Talon({self.share:g})"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        self._budget = tree.total_tokens - 1
        self._nodes = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def reset(self) -> None:
        self._nodes.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        near = (scores >= scores[:, :1] + math.log(self.share)).sum(dim=-1)
        self._nodes += torch.where(self._nodes == 0, scores.shape[-1], near)
        return self._nodes >= self._budget


class OptTree(Settled):
    """OPT-Tree (arXiv 2406.17276): stop when a level adds less than `gain` to the expected accepted length.

    The expected length is the sum of the probabilities of the nodes that would be verified. Published: `gain` 0.5, over
    all drafted nodes. Here over the beam's nodes of all levels, which leaves out children outside of every beam.
    """

    def __init__(self, gain: float = 0.5) -> None:
        if not 0.0 <= gain < math.inf:
            raise UsageError(f"OptTree: gain must be tokens of 0 or more, got {gain!r}")
        self.gain = float(gain)

    def __repr__(self) -> str:
        return f"OptTree({self.gain:g})"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        k = tree.tree_top_k
        self._seen = torch.full((batch_size, tree.max_calls * k), -torch.inf, device=device)
        self._columns = torch.arange(k, device=device)
        self._call = torch.zeros(1, dtype=torch.int64, device=device)
        self._length = torch.zeros(batch_size, device=device)
        self._nodes = min(tree.total_tokens - 1, tree.max_calls * k)

    def reset(self) -> None:
        self._seen.fill_(-torch.inf)
        self._call.zero_()
        self._length.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        self._seen.index_copy_(1, self._call * self._columns.shape[0] + self._columns, scores)
        self._call += 1
        length = self._seen.topk(self._nodes, dim=1).values.exp().sum(dim=-1)
        small = length - self._length <= self.gain
        self._length.copy_(length)
        return small
