"""A policy around another one, which goes on deciding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.policy.base import RoundSignals, Settled, StopPolicy, attach_signals, nodes_of_policy

__all__ = ["Around"]


class Around(Settled):
    """Hands everything to the policy inside; what a subclass changes comes on top.

    Args:
        policy: is copied where it is bound, so that two decoders can share it.
    """

    def __init__(self, policy: StopPolicy) -> None:
        self.policy = policy
        self._bound = policy
        self._signals: RoundSignals | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """What the policy draws from: a captured graph has to know."""
        generator: torch.Generator | None = getattr(self._bound, "generator", None)
        return generator

    @property
    def nodes(self) -> tuple[int, ...]:
        """See `NodePolicy`; none, if the policy leaves them to the tree."""
        return nodes_of_policy(self.policy)

    def choose(self, mass: Tensor) -> Tensor:
        """See `NodePolicy`."""
        chosen: Tensor = self._bound.choose(mass)  # type: ignore[attr-defined]
        return chosen

    @property
    def attach(self) -> Callable[[RoundSignals], None]:
        """Of a policy that reads signals alone: runners prepare them for those that have this."""
        if not hasattr(self.policy, "attach"):
            raise AttributeError(f"{self.policy!r} reads no signals")
        return self._attach

    def _attach(self, signals: RoundSignals) -> None:
        self._signals = signals

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        self._bound = copy.copy(self.policy)  # a copy of ours, as engines make them, must not share its state
        if self._signals is not None:
            attach_signals(self._bound, self._signals)
        self._bound.bind(batch_size, tree, device)

    def reset(self) -> None:
        self._bound.reset()

    def stop(self, scores: Tensor) -> Tensor:
        return self._bound.stop(scores)
