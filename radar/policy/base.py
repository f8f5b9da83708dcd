"""The stop policy's protocol, and the two policies that need no training."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar_kernels import mass_stop

__all__ = [
    "FixedDepth",
    "MassRule",
    "NodePolicy",
    "RoundSignals",
    "Settled",
    "SignalPolicy",
    "StopPolicy",
    "Threshold",
    "attach_signals",
    "bound_copy",
    "nodes_of_policy",
]


class StopPolicy(Protocol):
    """Decides after every draft call whether another one pays.

    A policy lives on the device: `stop` reads and writes tensors whose shapes `bind` has fixed, and never asks the
    host, so that a round with its decisions can be one CUDA graph. The engine ends the round at `TreeConfig.max_calls`.

    An engine binds a shallow copy, and what `bind` and `stop` have read is part of a captured graph: settings are not
    changed afterwards, another policy is assigned (the policies here are `Settled`). A policy that draws shows its
    `generator`, which a graph has to know; one that holds another policy shows that one's, and copies it in `bind`.
    """

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        """Allocate state for `batch_size` rows. Raises ValueError if the policy cannot serve this tree."""

    def reset(self) -> None:
        """Start a round."""

    def stop(self, scores: Tensor) -> Tensor:
        """Scores of the new level's beam [B, tree_top_k] (cumulative log-probabilities, sorted) -> stop flags [B]."""


class NodePolicy(StopPolicy, Protocol):
    """Says as well how many nodes are verified. Decoders of several texts (`max_batch_size`) and of several cards do
    not ask, and the tree's `total_tokens` counts there.

    Attributes:
        nodes: what it chooses among, ascending, the root included.
    """

    nodes: tuple[int, ...]

    def choose(self, mass: Tensor) -> Tensor:
        """Asked when drafting has ended, behind `stop`. `radar_kernels.tree_mass` of `nodes` [B, S] -> index [B]."""


def nodes_of_policy(policy: object) -> tuple[int, ...]:
    """The numbers of nodes that it chooses among; none, if it leaves them to the tree."""
    return tuple(getattr(policy, "nodes", ()))


class RoundSignals(NamedTuple):
    """What a policy may read beside the scores: static buffers that the runner fills in place before every `reset`.

    Attributes:
        accept_length: [B] int64, draft tokens accepted in the round before; -1 in the first round of a prompt.
        context_length: [B] int64, tokens known when the round starts, prompt included.
    """

    accept_length: Tensor
    context_length: Tensor


class SignalPolicy(StopPolicy, Protocol):
    """A policy that reads signals. A runner that has them calls `attach` once, before `bind`; `stop` stays as it is."""

    def attach(self, signals: RoundSignals) -> None:
        """Keep the buffers; they live on the device that `bind` will name."""


def attach_signals(policy: StopPolicy, signals: RoundSignals) -> None:
    """Offer signals to a policy that may read none."""
    attach = getattr(policy, "attach", None)
    if attach is not None:
        attach(signals)


def bound_copy(policy: StopPolicy, signals: RoundSignals, tree: TreeConfig) -> StopPolicy:
    """A copy that can decide where the signals live, as policies may serve two decoders. Raises UsageError if it
    cannot."""
    bound = copy.copy(policy)
    attach_signals(bound, signals)
    bound.bind(len(signals.accept_length), tree, signals.accept_length.device)
    return bound


class Settled:
    """What a policy was made with stays: a graph would go on with it, so a change is an error that says so.

    These are the arguments of the constructors here; a class of your own may add what changes from call to call.
    """

    _arguments: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("radar."):
            cls._arguments = cls._arguments | set(inspect.signature(cls).parameters)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._arguments and name in self.__dict__:
            kind = type(self).__name__
            raise UsageError(
                f"{kind}.{name} is fixed once the policy is made; assign another policy instead, as in "
                f"decoder.policy = {kind}(...)"
            )
        object.__setattr__(self, name, value)


class MassRule(Settled):
    """Stops where the beam's summed probability is below a bound, which the number of the call decides."""

    def mass_bounds(self) -> Sequence[float]:
        """After call 1, 2, ...; the last one is that of all further calls. 0 never stops there, inf always does."""
        raise NotImplementedError

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        self._bounds = torch.tensor(self.mass_bounds(), dtype=torch.float32, device=device)
        self._call = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def reset(self) -> None:
        self._call.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        return mass_stop(scores, self._bounds, self._call)


class FixedDepth(MassRule):
    """Always `calls` draft calls: EAGLE-3 is `FixedDepth(8)` (its depth 7, plus the call from the root)."""

    def __init__(self, calls: int = 8) -> None:
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
            raise UsageError(f"FixedDepth: calls must be a positive integer, got {calls!r}")
        self.calls = calls

    def __repr__(self) -> str:
        return f"FixedDepth({self.calls})"

    def mass_bounds(self) -> Sequence[float]:
        return [0.0] * (self.calls - 1) + [math.inf]

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        if self.calls > tree.max_calls:
            raise UsageError(f"{self!r} needs TreeConfig(max_calls={self.calls}) or more, got {tree.max_calls}")
        super().bind(batch_size, tree, device)


class Threshold(MassRule):
    """Stop when the beam's summed probability falls below `mass` (DDD, arXiv 2409.00142, checked at every level)."""

    def __init__(self, mass: float = 0.2) -> None:
        if not 0.0 <= mass <= 1.0:
            raise UsageError(f"Threshold: mass must be a probability from 0 to 1, got {mass!r}")
        self.mass = float(mass)

    def __repr__(self) -> str:
        return f"Threshold({self.mass:g})"

    def mass_bounds(self) -> Sequence[float]:
        return [self.mass]

    def reset(self) -> None:
        """One bound for all calls."""
