"""Recorded rounds: an append-only file of JSON lines, its writer, and its reader.

    {"format": "radar-rounds", "version": 1, "tree_top_k": 10, "max_calls": 16, "total_tokens": 60, "temperature": 0.0}
    {"prompt": 7, "position": 412, "scores": [[-0.1, ... k], ... max_calls], "accept_lengths": [1, 2, ... max_calls]}
    {"prompt_done": 7}

The header may hold further facts (target, draft). A round holds the beam's scores after every draft call (cumulative
log-probabilities, descending, rounded to 1e-5, -inf as null) and, for a stop after call 1 to max_calls, the number of
draft tokens that the target accepts (bonus excluded). A prompt's rounds count once its `prompt_done` line is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from radar.config import TreeConfig

__all__ = ["RoundDataset", "RoundWriter", "RoundsHeader", "SetAside", "read_rounds"]

FORMAT, FORMAT_VERSION = "radar-rounds", 1
_TREE = ("tree_top_k", "max_calls", "total_tokens")


@dataclass(frozen=True)
class RoundsHeader:
    """First line of a file. `metadata` holds facts that stay true of whatever is appended: target, draft, ..."""

    tree: TreeConfig
    temperature: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        value = self.temperature
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"RoundsHeader: temperature must be 0 or more, got {value!r}")
        if clash := sorted({"format", "version", "temperature", *_TREE} & self.metadata.keys()):
            raise ValueError(f"RoundsHeader: metadata may not name {', '.join(clash)}")

    def to_dict(self) -> dict[str, Any]:
        shape = {name: getattr(self.tree, name) for name in _TREE}
        return {"format": FORMAT, "version": FORMAT_VERSION, **shape, "temperature": self.temperature, **self.metadata}

    @classmethod
    def from_line(cls, line: bytes, path: Path) -> RoundsHeader:
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path}: not a file of recorded rounds: its first line is not a {FORMAT} header")
        if values.get("version") != FORMAT_VERSION:
            raise ValueError(f"{path}: version {values.get('version')!r} is unknown, this code reads {FORMAT_VERSION}")
        if missing := [name for name in (*_TREE, "temperature") if name not in values]:
            raise ValueError(f"{path}: the header lacks {', '.join(missing)}")
        metadata = {k: v for k, v in values.items() if k not in {"format", "version", "temperature", *_TREE}}
        try:
            return cls(TreeConfig(**{name: values[name] for name in _TREE}), values["temperature"], metadata)
        except ValueError as error:
            raise ValueError(f"{path}: in the header, {error}") from error


@dataclass(frozen=True)
class SetAside:
    """A line that was not used. Lines count from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class RoundDataset:
    """N rounds of T = max_calls draft calls with k = tree_top_k scores each."""

    scores: Tensor  # [N, T, k] float32
    accept_lengths: Tensor  # [N, T] int64: accepted draft tokens, bonus excluded, when stopping after call 1 to T
    prompt: Tensor  # [N] int64
    position: Tensor  # [N] int64: context length
    header: RoundsHeader
    set_aside: tuple[SetAside, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Tensor) -> RoundDataset:
        """The rounds of an index or mask [N]."""
        return RoundDataset(
            self.scores[index], self.accept_lengths[index], self.prompt[index], self.position[index], self.header
        )

    def truncate(self, max_calls: int) -> RoundDataset:
        """The same rounds with a lower bound of draft calls."""
        tree = replace(self.header.tree, max_calls=max_calls)
        if max_calls > self.scores.shape[1]:
            raise ValueError(f"rounds were recorded with max_calls={self.scores.shape[1]}, cannot replay {max_calls}")
        header = replace(self.header, tree=tree)
        return replace(
            self, scores=self.scores[:, :max_calls], accept_lengths=self.accept_lengths[:, :max_calls], header=header
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[RoundDataset, RoundDataset]:
        """(rest, held out): `fraction` of the prompts, at least one and not all. Rounds of a prompt stay together."""
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"split: fraction must be between 0 and 1, got {fraction!r}")
        prompts: list[int] = sorted(set(self.prompt.tolist()))
        if len(prompts) < 2:
            raise ValueError(f"split: needs rounds of two prompts or more, found {len(prompts)}")
        random.Random(seed).shuffle(prompts)
        count = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
        held = torch.isin(self.prompt, torch.tensor(prompts[:count]))
        return self.select(~held), self.select(held)

    def fingerprint(self) -> str:
        """SHA-256 of the rounds."""
        digest = hashlib.sha256()
        for part in (self.scores, self.accept_lengths, self.prompt, self.position):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


class RoundWriter:
    """Appends whole prompts. Opening a file again cuts off what a crash left: a torn line, an unfinished prompt.

    `done` holds the prompts already in the file. ValueError: the file is of another kind, or its header differs.
    """

    def __init__(self, path: str | os.PathLike[str], header: RoundsHeader) -> None:
        self.path, self.header = Path(path), header
        first = _line(header.to_dict())
        keep, self.done = _recover(self.path, header, first)
        self._file = open(self.path, "ab")  # noqa: SIM115  closed by close()
        self._file.truncate(keep)
        if keep == 0:
            self._write(first)

    def write_prompt(self, prompt: int, position: Tensor, scores: Tensor, accept_lengths: Tensor) -> None:
        """Rounds of one prompt, in order: position [n], scores [n, max_calls, k], accept_lengths [n, max_calls]."""
        tree = self.header.tree
        scores = scores.detach().to("cpu", torch.float32)
        accept_lengths = accept_lengths.detach().to("cpu", torch.int64)
        position = position.detach().to("cpu", torch.int64)
        rounds = len(scores)
        expected = ((rounds, tree.max_calls, tree.tree_top_k), (rounds, tree.max_calls), (rounds,))
        found = tuple(tuple(t.shape) for t in (scores, accept_lengths, position))
        if found != expected:
            raise ValueError(f"write_prompt: expected scores, accept_lengths, position of {expected}, got {found}")
        if prompt in self.done:
            raise ValueError(f"write_prompt: prompt {prompt} is in {self.path} already")
        if reasons := _impossible(scores, accept_lengths):
            raise ValueError(f"write_prompt: round {min(reasons)} of prompt {prompt}: {reasons[min(reasons)]}")
        lines = []
        for n, where in enumerate(position.tolist()):
            rows = [[None if value == -math.inf else round(value, 5) for value in row] for row in scores[n].tolist()]
            record = {"prompt": prompt, "position": where, "scores": rows, "accept_lengths": accept_lengths[n].tolist()}
            lines.append(_line(record))
        self._write(b"".join([*lines, _line({"prompt_done": prompt})]))
        self.done.add(prompt)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RoundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def read_rounds(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RoundDataset:
    """Read one file, or several of one tree shape (prompts are then renumbered so that none are mixed up).

    Corrupt lines are set aside and named in a warning. ValueError: a file of another kind or version, empty, of another
    tree shape, or without a usable round. FileNotFoundError: nothing is there.
    """
    if isinstance(path, str | os.PathLike):
        return _read_file(Path(path))
    parts = [_read_file(Path(one)) for one in path]
    if not parts:
        raise ValueError("read_rounds: no files given")
    if len(parts) == 1:
        return parts[0]
    prompts, offset = [], 0
    for one, part in zip(path, parts, strict=True):
        if part.header.tree != parts[0].header.tree:
            raise ValueError(f"{one} was recorded with {part.header.tree}, {path[0]} with {parts[0].header.tree}")
        prompts.append(part.prompt + offset)
        offset += int(part.prompt.max()) + 1
    return RoundDataset(
        torch.cat([part.scores for part in parts]),
        torch.cat([part.accept_lengths for part in parts]),
        torch.cat(prompts),
        torch.cat([part.position for part in parts]),
        parts[0].header,
        tuple(aside for part in parts for aside in part.set_aside),
    )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _recover(path: Path, header: RoundsHeader, first: bytes) -> tuple[int, set[int]]:
    """(bytes to keep, prompts done) of a file that is about to be appended to."""
    done: set[int] = set()
    if not path.exists():
        return 0, done
    keep = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                if keep == 0 and not first.startswith(line):
                    raise ValueError(f"{path}: not a file of recorded rounds, and not overwritten")
                break
            if keep == 0:
                _check_same(RoundsHeader.from_line(line, path), header, path)
                keep = end = len(line)
                continue
            end += len(line)
            if b'"prompt_done"' in line:
                try:
                    done.add(_whole(json.loads(line)["prompt_done"], "prompt_done"))
                    keep = end
                except (ValueError, KeyError, TypeError):
                    continue  # a damaged line: its prompt is recorded again
    return keep, done


def _check_same(found: RoundsHeader, wanted: RoundsHeader, path: Path) -> None:
    old, new = found.to_dict(), wanted.to_dict()
    if differing := [
        f"{k}: {old[k]!r} in the file, {new[k]!r} now" for k in old.keys() & new.keys() if old[k] != new[k]
    ]:
        raise ValueError(f"{path} holds rounds of another kind ({'; '.join(sorted(differing))}): write to a new file")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number of 0 or more, got {value!r}")
    return value


def _parse_round(record: dict[str, Any], tree: TreeConfig) -> tuple[int, int, array[float], array[int]]:
    """(prompt, position, scores, accept lengths). Raises ValueError, KeyError, TypeError or OverflowError."""
    rows, lengths = record["scores"], record["accept_lengths"]
    prompt, position = _whole(record["prompt"], "prompt"), _whole(record["position"], "position")
    widths = {len(row) if isinstance(row, list) else -1 for row in rows} if isinstance(rows, list) else set()
    if widths != {tree.tree_top_k} or len(rows) != tree.max_calls:
        raise ValueError(f"scores are not {tree.max_calls} rows of {tree.tree_top_k}")
    if not isinstance(lengths, list) or len(lengths) != tree.max_calls:
        raise ValueError(f"accept_lengths are not {tree.max_calls} numbers")
    flat = array("f")
    for row in rows:
        try:
            flat.extend(row)
        except TypeError:  # null is -inf; a partly extended row cannot be used again
            flat = array("f", [-math.inf if v is None else v for row in rows for v in row])
            break
    return prompt, position, flat, array("q", lengths)


def _impossible(scores: Tensor, accept_lengths: Tensor) -> dict[int, str]:
    """Index -> reason of rounds that no tree can give.

    Stopping one call later adds nodes of the new depth only, and the budget drops others: so an accepted path is cut
    shorter, stays, or (if it reached the last level) grows by the new one. It never grows again once it fell behind.
    """
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
    reasons: dict[int, str] = {}
    for reason, bad in checks.items():
        for row in bad.nonzero().flatten().tolist():
            reasons.setdefault(row, reason)
    return reasons


def _read_file(path: Path) -> RoundDataset:
    aside: dict[int, str] = {}
    scores, lengths = array("f"), array("q")
    columns: list[tuple[int, int, int]] = []  # line, prompt, position of the rounds in `scores`
    pending: list[tuple[int, tuple[int, int, array[float], array[int]]]] = []
    done: set[int] = set()

    def unfinished() -> None:
        aside.update((line, f"prompt {group[0]} has no prompt_done line") for line, group in pending)
        pending.clear()

    with open(path, "rb") as file:
        first = file.readline()
        if not first:
            raise ValueError(f"{path} is empty")
        header = RoundsHeader.from_line(first, path)
        for number, line in enumerate(file, start=2):
            try:
                record = _decode(line.decode())
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
                if "prompt_done" not in record:
                    parsed = _parse_round(record, header.tree)
                    if pending and pending[-1][1][0] != parsed[0]:
                        unfinished()
                    if parsed[0] in done:
                        raise ValueError(f"prompt {parsed[0]} was finished before")
                    pending.append((number, parsed))
                    continue
                prompt = _whole(record["prompt_done"], "prompt_done")
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                aside[number] = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                continue
            if pending and pending[-1][1][0] != prompt:
                unfinished()
            done.add(prompt)
            for where, (_, position, row, accepted) in pending:
                columns.append((where, prompt, position))
                scores.extend(row)
                lengths.extend(accepted)
            pending.clear()
        unfinished()

    shape = (len(columns), header.tree.max_calls, header.tree.tree_top_k)
    if not columns:
        reasons = "; ".join(f"line {n}: {reason}" for n, reason in sorted(aside.items())[:3])
        raise ValueError(f"{path} holds no usable round" + (f" ({reasons})" if reasons else ""))
    table = torch.tensor(columns, dtype=torch.int64)
    wide = torch.frombuffer(scores, dtype=torch.float32).view(shape).clone()
    accept = torch.frombuffer(lengths, dtype=torch.int64).view(shape[:2]).clone()
    bad = _impossible(wide, accept)
    aside.update((columns[row][0], reason) for row, reason in bad.items())
    set_aside = tuple(SetAside(line, aside[line]) for line in sorted(aside))
    if set_aside:
        named = "; ".join(f"line {one.line}: {one.reason}" for one in set_aside[:10])
        more = f"; and {len(set_aside) - 10} more" if len(set_aside) > 10 else ""
        warnings.warn(f"{path}: {len(set_aside)} lines set aside ({named}{more})", stacklevel=3)
    dataset = RoundDataset(wide, accept, table[:, 1], table[:, 2], header, set_aside)
    if bad:
        keep = torch.ones(len(columns), dtype=torch.bool)
        keep[torch.tensor(list(bad))] = False
        dataset = replace(dataset.select(keep), set_aside=set_aside)
    if not len(dataset):
        raise ValueError(f"{path} holds no usable round ({set_aside[0].line}: {set_aside[0].reason})")
    return dataset
