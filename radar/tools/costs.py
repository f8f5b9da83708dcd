"""What a round costs on one device with one pair: measured tables, read and written as JSON with strict checks.

{"format": "radar-costs", "version": 1, "device": "NVIDIA H200", "pair": "target + draft",
 "draft_call_seconds": [first call, second call, ...], "nodes": [32, 60], "contexts": [0, 1024, 4096],
 "verify_seconds": [[per context] per node count], "decision_seconds": 4e-6, "choice_seconds": 9e-6,
 "rest_seconds": 3e-4, "tree_top_k": 10}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import NotFoundError, UsageError
from radar.files import replacing

__all__ = ["CostTable", "read_json"]

FORMAT, FORMAT_VERSION = "radar-costs", 1
_MOST_CALLS, _FEWEST_NODES, _MOST_NODES = 16, 2, 256  # what TreeConfig allows


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Seconds of the parts of a round (any one unit serves as long as a table keeps to it).

    Attributes:
        draft_call_seconds: entry d is draft call d + 1; the first is the one from the root.
        nodes: verified node counts that were measured, the root included, ascending.
        contexts: context lengths in tokens that were measured, ascending.
        verify_seconds: [nodes][contexts] the target's pass over the tree. Between measured points it is interpolated
            linearly; a context outside of them costs what the nearest does; a node count outside of them is an error.
        decision_seconds: one decision of the policy. None is made after the last allowed call.
        rest_seconds: selection, acceptance, commit: all that depends on nothing.
        device: the hardware's name.
        pair: the target and the draft head.
        choice_seconds: a policy's word on how many nodes are verified, where it has one.
        tree_top_k: beams of the trees that were measured; None: of any, or not known.
    """

    draft_call_seconds: tuple[float, ...]
    nodes: tuple[int, ...]
    contexts: tuple[int, ...]
    verify_seconds: tuple[tuple[float, ...], ...]
    decision_seconds: float
    rest_seconds: float
    device: str
    pair: str
    choice_seconds: float = 0.0
    tree_top_k: int | None = None

    def __post_init__(self) -> None:
        def check(fits: bool, message: str) -> None:
            if not fits:
                raise UsageError(f"CostTable: {message}")

        check(len(self.draft_call_seconds) > 0, "draft_call_seconds is empty")
        for name in ("nodes", "contexts"):
            axis = getattr(self, name)
            rises = all(a < b for a, b in pairwise((-1, *axis)))
            check(len(axis) > 0 and rises, f"{name} must be ascending whole numbers, got {axis!r}")
        shape, want = [len(row) for row in self.verify_seconds], [len(self.contexts)] * len(self.nodes)
        check(shape == want, f"verify_seconds must be {len(self.nodes)} rows of {len(self.contexts)}, got {shape}")
        times = [*self.draft_call_seconds, *chain(*self.verify_seconds)]
        times += [self.decision_seconds, self.choice_seconds, self.rest_seconds]
        check(all(0 <= time < math.inf for time in times), f"seconds must be finite times of 0 or more, got {times}")
        for name in ("device", "pair"):
            check(bool(getattr(self, name)), f"{name} must be a name, got {getattr(self, name)!r}")
        least = self.draft_call_seconds[0] + self.rest_seconds + self.verify_seconds[0][0]
        check(least > 0, "call, verification and rest are all 0, so a round would take no time")

    @classmethod
    def constant(
        cls, *, call: float, rest: float, decision: float = 0.0, device: str = "any", pair: str = "any"
    ) -> CostTable:
        """The paper's model of a round: rest + call * n + decision * min(n, max_calls - 1), whatever the context."""
        return cls(
            draft_call_seconds=(call,) * _MOST_CALLS,
            nodes=(_FEWEST_NODES, _MOST_NODES),
            contexts=(0,),
            verify_seconds=((0.0,), (0.0,)),
            decision_seconds=decision,
            rest_seconds=rest,
            device=device,
            pair=pair,
        )

    @classmethod
    def paper(cls) -> CostTable:
        """The paper's code for Llama-3-8B, in seconds: T_o 0.07067, T_d 0.002684, T_p 0.0004.

        It writes T(k) = T_o + T_d k + T_p min(k + 1, 7) for k calls after the first, so its T_o holds the first call:
        `rest` = T_o - T_d.
        """
        rest = 0.07067 - 0.002684
        return cls.constant(call=0.002684, decision=0.0004, rest=rest, device="2x RTX 3090", pair="Llama-3-8B, RADAR")

    @property
    def mean_call_seconds(self) -> float:
        return sum(self.draft_call_seconds) / len(self.draft_call_seconds)

    def without_decisions(self) -> CostTable:
        """The same for a decoder that decides nothing: a fixed depth."""
        return replace(self, decision_seconds=0.0, choice_seconds=0.0)

    def round_seconds(self, calls: Tensor, context: Tensor, tree: TreeConfig) -> Tensor:
        """Seconds of rounds with `calls` draft calls (>= 1) at `context` tokens; the two broadcast. float64.

        Raises ValueError for a tree of other beams than were measured, or one that verifies more nodes or makes more
        calls.
        """
        if self.tree_top_k not in (None, tree.tree_top_k):
            raise UsageError(
                f"the cost table measured trees with tree_top_k={self.tree_top_k}, the tree has {tree.tree_top_k}: "
                "take the table of its beams (in the folder of a `radar fit` costs/costs.json is of 10, "
                "costs/costs-16.json of 16), or profile again with the draft that the rounds were recorded with"
            )
        if tree.max_calls > len(self.draft_call_seconds):
            raise UsageError(
                f"the cost table measured {len(self.draft_call_seconds)} draft calls, the tree allows {tree.max_calls}"
                ": profile again with that max_calls"
            )
        drafted = torch.tensor(self.draft_call_seconds, dtype=torch.float64).cumsum(0)[calls - 1]
        decided = self.decision_seconds * calls.clamp(max=tree.max_calls - 1).double()
        return drafted + decided + self._verify(context.double(), tree.total_tokens) + self.rest_seconds

    def worth_choosing(self, nodes: Sequence[int], tree: TreeConfig) -> tuple[int, ...]:
        """Those of ascending numbers of nodes that were measured and that no larger one undercuts, behind the shortest
        context: half-empty tiles can cost more than full ones."""
        known = [n for n in nodes if self.nodes[0] <= n <= self.nodes[-1]]
        one = torch.ones(1, dtype=torch.int64)
        prices = {n: self.round_seconds(one, one, replace(tree, total_tokens=n)).item() for n in known}
        return tuple(n for n in known if all(prices[n] < prices[more] for more in known if more > n))

    def times_of_nodes(self, tree: TreeConfig, context: Tensor, nodes: Sequence[int]) -> Tensor:
        """For every stop and number of nodes, the choice among them included: contexts [N] -> [N, max_calls, S]."""
        trees = [replace(tree, total_tokens=n) for n in nodes]
        return torch.stack([self.times(one, context) for one in trees], -1) + self.choice_seconds

    def times(self, tree: TreeConfig, context: Tensor) -> Tensor:
        """Seconds for every stop: contexts [N] -> [N, max_calls] float64."""
        return self.round_seconds(torch.arange(1, tree.max_calls + 1)[None], context[:, None], tree)

    def _verify(self, context: Tensor, nodes: int) -> Tensor:
        if not self.nodes[0] <= nodes <= self.nodes[-1]:
            raise UsageError(
                f"the cost table measured {self.nodes[0]} to {self.nodes[-1]} nodes, the tree verifies {nodes}: "
                "profile again with that total_tokens"
            )
        row = [np.interp(nodes, self.nodes, column) for column in zip(*self.verify_seconds, strict=True)]
        return torch.as_tensor(np.interp(context.numpy(), self.contexts, row))

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "cost table") -> CostTable:
        """Raises ValueError for anything but what `to_dict` gave; `source` names it there."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UsageError(f'{source}: not a cost table: it lacks "format": "{FORMAT}"')
        if (version := values.get("version")) != FORMAT_VERSION:
            raise UsageError(f"{source}: version {version!r} is unknown, this code reads {FORMAT_VERSION}")
        fields = {name: value for name, value in values.items() if name not in ("format", "version")}
        fields = {"choice_seconds": 0.0, "tree_top_k": None} | fields  # tables of before know none
        hints = get_type_hints(cls)
        if wrong := sorted(hints.keys() ^ fields.keys()):
            raise UsageError(f"{source}: missing or unknown: {', '.join(wrong)}")
        try:
            return cls(**{name: _as(hint, fields[name], name) for name, hint in hints.items()})
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file; it is replaced in one step."""
        path = Path(path)
        with replacing(path.parent) as place:
            (place / path.name).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | None) -> CostTable:
        """Read a table.

        Args:
            path: what `save` wrote.
            device: the hardware's name that the table has to be of; None takes a table of any device.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: it is torn, of another kind or version, holds impossible times, or is of another device.
        """
        table = cls.from_dict(read_json(path), source=str(path))
        table.check_device(device, source=str(path))
        return table

    def check_device(self, device: str | None, *, source: str) -> None:
        """Raise ValueError, which names the `source`, for the table of another device; None takes that of any."""
        if device is not None and self.device != device:
            raise UsageError(
                f"{source} was measured on {self.device!r}, this is {device!r}: times do not carry over. Profile this "
                "device, or take the table all the same with device=None (--any-device)"
            )


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a file of costs holds. NotFoundError: nothing is there; ValueError: it is no JSON."""
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no cost table at {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON, or is cut off: {error}") from error


def _as(hint: Any, value: Any, name: str) -> Any:
    """A value as `tuple[X, ...]`, a float (a whole number is one), or what else the hint names."""
    if isinstance(hint, GenericAlias):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name} must be a list, got {value!r}")
        return tuple(_as(get_args(hint)[0], one, f"an entry of {name}") for one in value)
    if isinstance(value, bool) or not isinstance(value, int | float if hint is float else hint):
        raise UsageError(f"{name} must be of type {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
