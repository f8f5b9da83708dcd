"""Recorded rounds in memory: what a policy reads after every call, and what every stop would have had accepted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.tools.twins import groups

__all__ = ["RoundDataset", "RoundsHeader", "concatenate", "digest"]

BY_NODES = ("accepted_by_nodes", "expected_by_nodes", "mass_by_nodes")
PARTS = ("scores", "accept_lengths", "prompt", "position", "distribution", "path", *BY_NODES)


@dataclass(frozen=True)
class RoundsHeader:
    """What holds for all rounds of a recording. `metadata`: further facts, JSON types (target, draft, seed, ...).

    `every_token`: a round begins at every token of a text, so that replay goes from round to round as decoding does.
    `nodes`: numbers of verified nodes of which the outcome is known, ascending, the root included; the tree's is one.
    """

    tree: TreeConfig
    temperature: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    every_token: bool = False
    nodes: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        tree = {name: getattr(self.tree, name) for name in ("tree_top_k", "max_calls", "total_tokens")}
        of_rounds = {"temperature": self.temperature, "every_token": self.every_token, "nodes": list(self.nodes)}
        return {**self.metadata, **tree, **of_rounds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoundsHeader:
        """The inverse of `to_dict`."""
        rest = dict(values)
        tree = TreeConfig(**{name: rest.pop(name) for name in ("tree_top_k", "max_calls", "total_tokens")})
        nodes = tuple(rest.pop("nodes", ()))  # recordings of before know of one number of nodes
        return cls(tree, rest.pop("temperature"), every_token=rest.pop("every_token"), nodes=nodes, metadata=rest)

    def unlike(self, other: RoundsHeader, names: Sequence[str] = ()) -> str:
        """How it differs, in words; empty if it does not. With `names`: in these, if both know them."""
        mine, theirs = self.to_dict(), other.to_dict()
        looked_at = sorted(mine.keys() & theirs.keys() & set(names) if names else mine.keys() | theirs.keys())
        pairs = {name: (mine.get(name, "nothing"), theirs.get(name, "nothing")) for name in looked_at}
        return ", ".join(f"{name} {a!r}, not {b!r}" for name, (a, b) in pairs.items() if a != b)


@dataclass(frozen=True)
class RoundDataset:
    """N rounds of T = max_calls draft calls with k = tree_top_k scores each, in the order of the text within a prompt.

    Attributes:
        scores: [N, T, k] float32, the beam's cumulative log-probabilities, descending; -inf where there is no node.
        accept_lengths: [N, T] int64: accepted draft tokens, without the target's own one behind them, when stopping
            after call 1 to T; an end token counts as that one, drafted or not. Above temperature 0 the outcome for the
            text that was sampled.
        prompt: [N] int64.
        position: [N] int64: context length in tokens, prompt included.
        distribution: [N, T, T + 1] float32: probability of each accepted length for each stop, over the target's
            sampling; None if it was not recorded. At temperature 0 `accept_lengths` is all there is to know.
        prompts: `radar.tools.twins.fingerprint` of the prompts, by number; empty if they are not known.
        path: [N, T] float32: the text's own node at every level, its cumulative log-probability, -inf from where the
            text leaves the tree; None in recordings of before.
        accepted_by_nodes: [N, T, S] uint8: `accept_lengths` had the header's `nodes` been verified instead of the
            tree's; None in recordings of before, and so the next two.
        expected_by_nodes: [N, T, S] float32: the expectation of that over the target's sampling; None at temperature 0.
        mass_by_nodes: [N, T, S] float32: the same by the draft's own probabilities, which a policy may read.

    Raises ValueError for parts whose shapes do not fit together or to the header's tree.
    """

    scores: Tensor
    accept_lengths: Tensor
    prompt: Tensor
    position: Tensor
    header: RoundsHeader
    distribution: Tensor | None = None
    prompts: Mapping[int, Tensor] = field(default_factory=dict)
    path: Tensor | None = None
    accepted_by_nodes: Tensor | None = None
    expected_by_nodes: Tensor | None = None
    mass_by_nodes: Tensor | None = None

    def __post_init__(self) -> None:
        rounds, calls, width = len(self.scores), self.header.tree.max_calls, self.header.tree.tree_top_k
        expected: dict[str, tuple[int, ...]] = {"scores": (rounds, calls, width), "accept_lengths": (rounds, calls)}
        expected |= {"prompt": (rounds,), "position": (rounds,), "path": (rounds, calls)}
        expected |= {"distribution": (rounds, calls, calls + 1)}
        expected |= dict.fromkeys(BY_NODES, (rounds, calls, len(self.header.nodes)))
        for name, part in self.tensors().items():
            if part.shape != expected[name]:
                want, got = list(expected[name]), list(part.shape)
                raise UsageError(f"RoundDataset: {name} must be {want} for this tree, got {got}")

    def __len__(self) -> int:
        return len(self.scores)

    def tensors(self) -> dict[str, Tensor]:
        """All parts that are there, by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    @classmethod
    def of(cls, parts: Mapping[str, Tensor], header: RoundsHeader, prompts: Mapping[int, Tensor]) -> RoundDataset:
        """The inverse of `tensors`."""
        known = {name: part for name, part in parts.items() if name in PARTS}  # files of before hold others, unread
        return cls(header=header, prompts=prompts, **known)

    def expected_accept(self) -> Tensor:
        """Accepted draft tokens for every stop [N, T] float32: their expectation where the distribution is known."""
        if self.distribution is None and self.expected_by_nodes is None:
            return self.accept_lengths.float()
        if self.distribution is None:
            return self.expected_of_nodes()[..., self.header.nodes.index(self.header.tree.total_tokens)]
        return self.distribution @ torch.arange(self.distribution.shape[-1], dtype=torch.float32)

    def expected_of_nodes(self) -> Tensor:
        """The same for every stop and number of nodes [N, T, S] float32."""
        known = self.of_nodes()
        table = known.accepted_by_nodes if known.expected_by_nodes is None else known.expected_by_nodes
        assert table is not None
        return table.float()

    def of_nodes(self, nodes: Sequence[int] = ()) -> RoundDataset:
        """Itself, if these numbers of nodes, or any, were recorded. Raises UsageError otherwise."""
        missing = ", ".join(map(str, sorted({*nodes} - {*self.header.nodes})))
        if missing or not self.header.nodes:
            raise UsageError(
                f"what verifying {missing or 'other numbers of'} nodes would have had accepted is not in these rounds, "
                f"which know of {list(self.header.nodes)}: record them again with `radar record`"
            )
        return self

    def with_nodes(self, nodes: int) -> RoundDataset:
        """The same rounds of trees that verify another number of nodes, one of those recorded."""
        at = self.of_nodes([nodes]).header.nodes.index(nodes)
        tree = replace(self.header.tree, total_tokens=nodes)
        parts = {name: part for name, part in self.tensors().items() if name != "distribution"}
        assert self.accepted_by_nodes is not None
        parts["accept_lengths"] = self.accepted_by_nodes[..., at].long()
        return RoundDataset.of(parts, replace(self.header, tree=tree), self.prompts)

    def select(self, index: Tensor) -> RoundDataset:
        """The rounds of an index or mask [N]."""
        kept = {name: part[index] for name, part in self.tensors().items()}
        there = set(kept["prompt"].tolist())
        return RoundDataset.of(kept, self.header, {n: one for n, one in self.prompts.items() if n in there})

    def truncate(self, max_calls: int) -> RoundDataset:
        """The same rounds with a lower bound of draft calls."""
        if max_calls > self.scores.shape[1]:
            raise UsageError(f"rounds were recorded with max_calls={self.scores.shape[1]}, cannot replay {max_calls}")
        parts = self.tensors()
        for name in parts.keys() & {"scores", "accept_lengths", "distribution", "path", *BY_NODES}:
            parts[name] = parts[name][:, :max_calls]
        if self.distribution is not None:
            parts["distribution"] = parts["distribution"][..., : max_calls + 1]
        tree = replace(self.header.tree, max_calls=max_calls)
        return RoundDataset.of(parts, replace(self.header, tree=tree), self.prompts)

    def split_by_prompt(self, fraction: float, seed: int = 0) -> tuple[RoundDataset, RoundDataset]:
        """(rest, held out): `fraction` of the prompts, at least one and not all; near-twins are on one side."""
        group = groups(self.prompts)
        prompts: dict[int, list[int]] = {}
        for prompt in sorted(set(self.prompt.tolist())):
            prompts.setdefault(group.get(prompt, prompt), []).append(prompt)
        if len(prompts) < 2:
            raise UsageError(f"split_by_prompt: needs rounds of two unlike prompts or more, found {len(prompts)}")
        order = list(prompts)
        random.Random(seed).shuffle(order)
        count = min(max(round(fraction * len(order)), 1), len(order) - 1)
        held = torch.tensor([prompt for name in order[:count] for prompt in prompts[name]])
        chosen = torch.isin(self.prompt, held)
        return self.select(~chosen), self.select(chosen)

    def fingerprint(self) -> str:
        """SHA-256 of the rounds."""
        return digest(self.tensors())


def concatenate(parts: Sequence[RoundDataset]) -> RoundDataset:
    """Rounds of one kind, one after the other, with the numbers of nodes that all know of; prompt ids are taken as they
    are."""
    nodes = tuple(n for n in parts[0].header.nodes if all(n in part.header.nodes for part in parts))
    tensors = [part.tensors() for part in parts]
    for part, one in zip(parts, tensors, strict=True):
        places = torch.tensor([part.header.nodes.index(n) for n in nodes], dtype=torch.int64)
        for name in one.keys() & set(BY_NODES):
            one[name] = one[name][..., places]
    prompts = {number: trigrams for part in parts for number, trigrams in part.prompts.items()}
    known = [name for name in PARTS if nodes or name not in BY_NODES]
    names = [name for name in known if all(name in one for one in tensors)]  # some have no path
    joined = {name: torch.cat([one[name] for one in tensors]) for name in names}
    return RoundDataset.of(joined, replace(parts[0].header, nodes=nodes), prompts)


def digest(tensors: Mapping[str, Tensor], *, about: str = "") -> str:
    """SHA-256 of tensors on the CPU, with their names, shapes and types, and of a text."""
    found = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        part = tensors[name].contiguous()
        found.update(f"{name}{tuple(part.shape)}{part.dtype}".encode())
        found.update(part.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
