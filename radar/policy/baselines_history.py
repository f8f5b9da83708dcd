"""A stop rule that looks back instead of at the draft: GammaTune."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.policy.base import RoundSignals, Settled

__all__ = ["GammaTune"]


class GammaTune(Settled):
    """GammaTune (arXiv 2504.00030): the number of calls follows what the rounds before had accepted.

    All accepted: `step` calls more. Otherwise the moving average of accepted lengths, rounded up, within [low, high].
    Made for chains; on a tree "all" means as many tokens as calls. It needs the signals of a runner (`attach`), forgets
    at a new prompt, and never looks at the scores.

    Args:
        rate: weight of the newest round in the average.
        calls: calls of a prompt's first round, where the average starts too.
    """

    def __init__(self, rate: float = 0.2, *, calls: int = 8, step: int = 2, low: int = 4, high: int = 12) -> None:
        if not 0.0 < rate <= 1.0:
            raise UsageError(f"GammaTune: rate must be above 0 and at most 1, got {rate!r}")
        if not 1 <= low <= calls <= high:
            raise UsageError(f"GammaTune: needs 1 <= low <= calls <= high, got {low}, {calls}, {high}")
        self.rate, self.calls, self.step, self.low, self.high = float(rate), calls, step, low, high
        self._signals: RoundSignals | None = None

    def __repr__(self) -> str:
        return f"GammaTune({self.rate:g}, calls={self.calls}, low={self.low}, high={self.high})"

    def attach(self, signals: RoundSignals) -> None:
        self._signals = signals

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        if self._signals is None:
            raise UsageError("GammaTune reads the accepted length of the last round, which this runner does not offer")
        self._average = torch.full((batch_size,), float(self.calls), device=device)
        self._planned = torch.full((batch_size,), self.calls, dtype=torch.int64, device=device)
        self._count = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._most = min(self.high, tree.max_calls)

    def reset(self) -> None:
        assert self._signals is not None  # bind has seen to it
        accepted = self._signals.accept_length
        fresh, full = accepted < 0, accepted >= self._planned
        moved = ((1 - self.rate) * self._average + self.rate * accepted).clamp(self.low, self._most)
        average = torch.where(fresh, float(self.calls), torch.where(full, self._average, moved))
        planned = torch.where(full, self._planned + self.step, average.ceil().long())
        self._average.copy_(average)
        self._planned.copy_(torch.where(fresh, self.calls, planned).clamp(max=self._most))
        self._count.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        self._count += 1
        return self._count >= self._planned
