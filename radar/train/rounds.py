"""Recorded rounds in memory: what a policy reads after every call, and what every stop would have had accepted."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError

__all__ = ["RecordedSignals", "RoundDataset", "RoundsHeader", "SetAside", "concatenate", "impossible", "shapes"]

FORMAT, FORMAT_VERSION, READABLE_VERSIONS = "radar-rounds", 2, (1, 2, 3)
EVERY_TOKEN_VERSION = 3  # a reader that does not know what it means is to refuse it
OPTIONAL_FIELDS = ("signals", "distribution")
_TREE = ("tree_top_k", "max_calls", "total_tokens")
_SUM_TOLERANCE = 1e-3  # of probabilities that are rounded to 1e-6 and come from float16 logits
_RESERVED = {"format", "version", "temperature", "fields", "every_token", *_TREE}


@dataclass(frozen=True)
class RoundsHeader:
    """First line of a file. `metadata` holds facts that stay true of whatever is appended: target, draft, ...

    `fields` names the optional parts that every round of the file has: "signals", "distribution". With `every_token` a
    round begins at every token of a text, so that replay can go from round to round as decoding does.
    """

    tree: TreeConfig
    temperature: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    every_token: bool = False

    def __post_init__(self) -> None:
        value = self.temperature
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(f"RoundsHeader: temperature must be 0 or more, got {value!r}")
        if clash := sorted(_RESERVED & self.metadata.keys()):
            raise UsageError(f"RoundsHeader: metadata may not name {', '.join(clash)}")
        if self.fields != tuple(name for name in OPTIONAL_FIELDS if name in self.fields):
            raise UsageError(f"RoundsHeader: fields may hold {', '.join(OPTIONAL_FIELDS)}, got {self.fields!r}")

    def to_dict(self) -> dict[str, Any]:
        shape = {name: getattr(self.tree, name) for name in _TREE}
        about = {"temperature": self.temperature, "fields": list(self.fields)}
        if self.every_token:
            about["every_token"] = True
        version = EVERY_TOKEN_VERSION if self.every_token else FORMAT_VERSION
        return {"format": FORMAT, "version": version, **shape, **about, **self.metadata}

    @classmethod
    def from_line(cls, line: bytes, path: Path) -> RoundsHeader:
        """Raises ValueError that names the file and what is wrong with it. Version 1 had no `fields`."""
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UsageError(f"{path}: not a file of recorded rounds: its first line is not a {FORMAT} header")
        version = values.get("version")
        if version not in READABLE_VERSIONS:
            raise UsageError(
                f"{path}: version {version!r} is unknown, this code reads {', '.join(map(str, READABLE_VERSIONS))}: "
                "record the rounds again with `radar record`, or read them with the release that wrote them"
            )
        needed = (*_TREE, "temperature", *(("fields",) if version > 1 else ()))
        if missing := [name for name in needed if name not in values]:
            raise UsageError(f"{path}: the header lacks {', '.join(missing)}")
        metadata = {name: value for name, value in values.items() if name not in _RESERVED}
        fields = values.get("fields", [])
        try:
            if not isinstance(fields, list):
                raise UsageError(f"fields must be a list, got {fields!r}")
            if (every_token := values.get("every_token", False)) is not (version == EVERY_TOKEN_VERSION):
                raise UsageError(f"every_token is {every_token!r} in version {version}")
            tree = TreeConfig(**{name: values[name] for name in _TREE})
            return cls(tree, values["temperature"], metadata, tuple(fields), every_token)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: in the header, {error}") from error


class SetAside(NamedTuple):
    """A line that was not used. Lines count from 1."""

    line: int
    reason: str


class RecordedSignals(NamedTuple):
    """Cheap facts beside the scores that a policy may read.

    Attributes:
        expected_lengths: [N, T] float32, after call 1 to T: the draft's own expected accepted length, which is the sum
            of the probabilities of the nodes that would be verified. Its growth is the difference along T.
        last_accept_length: [N] int64, accepted draft tokens of the round before; -1 in a prompt's first round, and
            where a round begins at every token: there it depends on the policy.
        target_entropy: [N] float32, nats, of the target's distribution from which the round's root was taken.
        generated: [N] int64, output tokens known when the round starts; the root counts.
    """

    expected_lengths: Tensor
    last_accept_length: Tensor
    target_entropy: Tensor
    generated: Tensor


@dataclass(frozen=True)
class RoundDataset:
    """N rounds of T = max_calls draft calls with k = tree_top_k scores each, in the order of the text within a prompt.

    Attributes:
        scores: [N, T, k] float32, the beam's cumulative log-probabilities; the first level's best two are the top-two
            root probabilities.
        accept_lengths: [N, T] int64: accepted draft tokens, without the target's own one behind them, when stopping
            after call 1 to T; an end token counts as that one, drafted or not. Above temperature 0 the outcome for the
            text that was sampled.
        prompt: [N] int64.
        position: [N] int64: context length in tokens, prompt included.
        signals: None if they were not recorded.
        distribution: [N, T, T + 1] float32: probability of each accepted length for each stop, over the target's
            sampling; None if it was not recorded. At temperature 0 `accept_lengths` is all there is to know.
    """

    scores: Tensor
    accept_lengths: Tensor
    prompt: Tensor
    position: Tensor
    header: RoundsHeader
    set_aside: tuple[SetAside, ...] = ()
    signals: RecordedSignals | None = None
    distribution: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def expected_accept(self) -> Tensor:
        """Accepted draft tokens for every stop [N, T] float32: their expectation where the distribution is known."""
        if self.distribution is None:
            return self.accept_lengths.float()
        return self.distribution @ torch.arange(self.distribution.shape[-1], dtype=torch.float32)

    def select(self, index: Tensor) -> RoundDataset:
        """The rounds of an index or mask [N]."""
        return RoundDataset(
            self.scores[index],
            self.accept_lengths[index],
            self.prompt[index],
            self.position[index],
            self.header,
            signals=None if self.signals is None else RecordedSignals(*(part[index] for part in self.signals)),
            distribution=None if self.distribution is None else self.distribution[index],
        )

    def truncate(self, max_calls: int) -> RoundDataset:
        """The same rounds with a lower bound of draft calls."""
        tree = replace(self.header.tree, max_calls=max_calls)
        if max_calls > self.scores.shape[1]:
            raise UsageError(f"rounds were recorded with max_calls={self.scores.shape[1]}, cannot replay {max_calls}")
        signals = self.signals
        if signals is not None:
            signals = signals._replace(expected_lengths=signals.expected_lengths[:, :max_calls])
        return replace(
            self,
            scores=self.scores[:, :max_calls],
            accept_lengths=self.accept_lengths[:, :max_calls],
            header=replace(self.header, tree=tree),
            signals=signals,
            distribution=None if self.distribution is None else self.distribution[:, :max_calls, : max_calls + 1],
        )

    def split_by_prompt(self, fraction: float, seed: int = 0) -> tuple[RoundDataset, RoundDataset]:
        """(rest, held out): `fraction` of the prompts, at least one and not all. Rounds of a prompt stay together."""
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"split_by_prompt: fraction must be between 0 and 1, got {fraction!r}")
        prompts: list[int] = sorted(set(self.prompt.tolist()))
        if len(prompts) < 2:
            raise UsageError(f"split_by_prompt: needs rounds of two prompts or more, found {len(prompts)}")
        random.Random(seed).shuffle(prompts)
        count = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
        held = torch.isin(self.prompt, torch.tensor(prompts[:count]))
        return self.select(~held), self.select(held)

    def fingerprint(self) -> str:
        """SHA-256 of the rounds."""
        digest = hashlib.sha256()
        optional = (*(self.signals or ()), *(() if self.distribution is None else (self.distribution,)))
        for part in (self.scores, self.accept_lengths, self.prompt, self.position, *optional):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


def concatenate(parts: Sequence[RoundDataset]) -> RoundDataset:
    """Rounds of one tree shape, one after the other; an optional part stays if all of them have it.

    Prompt ids are taken as they are.
    """
    signals, distribution = None, None
    if all(part.signals is not None for part in parts):
        columns = zip(*(part.signals for part in parts if part.signals is not None), strict=True)
        signals = RecordedSignals(*(torch.cat(column) for column in columns))
    if all(part.distribution is not None for part in parts):
        distribution = torch.cat([part.distribution for part in parts if part.distribution is not None])
    kept = {"signals": signals is not None, "distribution": distribution is not None}
    return RoundDataset(
        torch.cat([part.scores for part in parts]),
        torch.cat([part.accept_lengths for part in parts]),
        torch.cat([part.prompt for part in parts]),
        torch.cat([part.position for part in parts]),
        replace(parts[0].header, fields=tuple(name for name in OPTIONAL_FIELDS if kept[name])),
        tuple(aside for part in parts for aside in part.set_aside),
        signals,
        distribution,
    )


def shapes(data: RoundDataset) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(expected, found) shapes of all parts."""
    tree, rounds = data.header.tree, len(data.scores)
    calls = tree.max_calls
    expected: list[tuple[int, ...]] = [(rounds, calls, tree.tree_top_k), (rounds, calls), (rounds,)]
    found = [tuple(part.shape) for part in (data.scores, data.accept_lengths, data.position)]
    if data.signals is not None:
        expected += [(rounds, calls), (rounds,), (rounds,), (rounds,)]
        found += [tuple(part.shape) for part in data.signals]
    if data.distribution is not None:
        expected.append((rounds, calls, calls + 1))
        found.append(tuple(data.distribution.shape))
    return expected, found


def impossible(data: RoundDataset) -> dict[int, str]:
    """Index -> reason of rounds that no tree can give.

    Stopping one call later adds nodes of the new depth only, and the budget drops others: so an accepted path is cut
    shorter, stays, or (if it reached the last level) grows by the new one. It never grows again once it fell behind.
    """
    scores, accept_lengths = data.scores, data.accept_lengths
    index = torch.arange(1, accept_lengths.shape[1] + 1)
    before, after = accept_lengths[:, :-1], accept_lengths[:, 1:]
    grown = (after > before) & ~((before == index[:-1]) & (after == index[1:]))
    checks = {
        "scores hold NaN": scores.isnan().flatten(1).any(1),
        "scores are not log-probabilities (above 0)": (scores > 1e-3).flatten(1).any(1),
        "scores are not in descending order": (scores[..., 1:] > scores[..., :-1]).flatten(1).any(1),
        "an accept length is negative": (accept_lengths < 0).any(1),
        "an accept length is above its number of calls": (accept_lengths > index).any(1),
        "accept lengths grow after they fell behind": grown.any(1),
    }
    if (signals := data.signals) is not None:
        expected, entropy = signals.expected_lengths, signals.target_entropy
        checks["an expected length is not between 0 and its number of calls"] = ~(
            (expected >= 0) & (expected <= index + 1e-3)
        ).all(1)
        checks["target_entropy is not 0 or more"] = ~((entropy >= 0) & entropy.isfinite())
        checks["last_accept_length is below -1"] = signals.last_accept_length < -1
    if data.distribution is not None:
        table = data.distribution
        beyond = table.masked_fill(torch.arange(table.shape[-1]) <= index[:, None], 0.0)
        fits = (table >= 0).flatten(1).all(1) & (beyond == 0).flatten(1).all(1)
        checks["distribution is not one of probabilities"] = ~(
            fits & ((table.sum(-1) - 1).abs() < _SUM_TOLERANCE).all(1)
        )
    reasons: dict[int, str] = {}
    for reason, bad in checks.items():
        for row in bad.nonzero().flatten().tolist():
            reasons.setdefault(row, reason)
    return reasons
