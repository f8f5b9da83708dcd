"""Files of recorded rounds: append-only JSON lines, format versions 2 and 3, and their reader.

`radar.train.round_writer` writes them.

    {"format": "radar-rounds", "version": 2, "tree_top_k": 10, "max_calls": 16, "total_tokens": 60, "temperature": 0.0,
     "fields": ["signals", "distribution"]}
    {"prompt": 7, "position": 412, "scores": [[-0.1, ... k], ... max_calls], "accept_lengths": [1, 2, ... max_calls],
     "expected_lengths": [0.9, ... max_calls], "last_accept_length": 3, "target_entropy": 0.71, "generated": 40,
     "distribution": [[0.3, 0.7], [0.3, 0.2, 0.5], ... max_calls rows]}
    {"prompt_done": 7, "prompt_sha256": "9f86d081884c7d65", "max_new_tokens": 192, "seed": 0}

The header may hold further facts (target, draft). A round holds the beam's scores after every draft call (cumulative
log-probabilities, descending, rounded to 1e-5, -inf as null) and, for a stop after call 1 to max_calls, the number of
draft tokens that the target accepts (bonus excluded). The keys from `expected_lengths` to `generated` are there if
`fields` names "signals" (see `RecordedSignals`), `distribution` (row n: P(0), ... P(n) accepted when stopping after
call n) if it names that. A prompt's rounds count once its `prompt_done` line is written. That line's other keys are
what the text depended on: the SHA-256 of the prompt's token ids (a JSON list without blanks; the first 16 digits), its
limit in tokens and the recording's seed. Whoever goes on with the file has to agree with them; files written before
have none. Version 1 is this without `fields`; it is read, but not appended to. Version 3 is version 2 with
"every_token": true in the header: a round begins at every token of each text.

Several processes write shards `NAME.shard-0-of-4.jsonl` of one set; `read_rounds("NAME.jsonl")` merges them.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from radar.errors import NotFoundError, UsageError
from radar.train.rounds import RecordedSignals, RoundDataset, RoundsHeader, SetAside, concatenate, impossible

__all__ = [
    "RecordedSignals", "RoundDataset", "RoundsHeader", "SetAside", "check_same", "read_rounds", "shard_path", "whole",
]  # fmt: skip


def shard_path(path: str | os.PathLike[str], index: int, count: int) -> Path:
    """Where process `index` of `count` writes its prompts of `path`.

    Raises ValueError if shards of another number of processes are there: they would not add up to one set.
    """
    path = Path(path)
    name = f"{path.stem}.shard-{index}-of-{count}{path.suffix}"
    if other := [file.name for file in _shards(path) if not file.name.endswith(f"-of-{count}{path.suffix}")]:
        raise UsageError(f"{path} was begun with another number of processes ({other[0]}): use that, or a new file")
    return path.with_name(name)


def read_rounds(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RoundDataset:
    """Read one file, its shards, or several of one kind (whose prompts are renumbered: none are mixed up).

    Corrupt lines are set aside and named in a warning. ValueError: a file of another kind or version, empty, or without
    a usable round; a shard that is missing; of several files, one of another tree shape, temperature, target or draft
    than the first, or one whose rounds were given before. FileNotFoundError: nothing is there.
    """
    if isinstance(path, str | os.PathLike):
        path = Path(path)
        return _read_file(path) if path.exists() else _read_shards(path)
    parts = [read_rounds(one) for one in path]
    if not parts:
        raise UsageError("read_rounds: no files given")
    if len(parts) == 1:
        return parts[0]
    renumbered, offset = [], 0
    given: dict[str, str | os.PathLike[str]] = {}
    for one, part in zip(path, parts, strict=True):
        if part.header.tree != parts[0].header.tree:
            raise UsageError(f"{one} was recorded with {part.header.tree}, {path[0]} with {parts[0].header.tree}")
        if part.header.every_token != parts[0].header.every_token:
            raise UsageError(f"of {one} and {path[0]} only one has a round at every token: read them apart")
        here, first = part.header.to_dict(), parts[0].header.to_dict()
        for name in ("temperature", "target", "draft"):  # a header may leave out the last two
            if name in here.keys() & first.keys() and here[name] != first[name]:
                raise UsageError(f"{one} is of {name} {here[name]!r}, {path[0]} of {first[name]!r}: read them apart")
        if (content := part.fingerprint()) in given:
            raise UsageError(f"{one} holds the rounds of {given[content]}: give them once, they are no other prompts'")
        given[content] = one
        renumbered.append(replace(part, prompt=part.prompt + offset))
        offset += int(part.prompt.max()) + 1
    return concatenate(renumbered)


def _shards(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.stem) + r"\.shard-\d+-of-\d+" + re.escape(path.suffix))
    return sorted(file for file in path.parent.glob(f"{path.stem}.shard-*") if pattern.fullmatch(file.name))


def _read_shards(path: Path) -> RoundDataset:
    files = _shards(path)
    if not files:
        raise NotFoundError(f"no recorded rounds at {path}")
    count = int(files[0].stem.rsplit("-", 1)[1])
    wanted = sorted(shard_path(path, index, count) for index in range(count))
    if missing := [file.name for file in wanted if file not in files]:
        raise UsageError(f"{path}: shards are missing: {', '.join(missing)}")
    parts = [_read_file(file) for file in wanted]
    seen: set[int] = set()
    for file, part in zip(wanted, parts, strict=True):
        check_same(part.header, parts[0].header, file)
        prompts = set(part.prompt.tolist())
        if twice := sorted(prompts & seen):
            raise UsageError(f"{file}: prompt {twice[0]} is in another shard too")
        seen |= prompts
    return concatenate(parts)


def check_same(found: RoundsHeader, wanted: RoundsHeader, path: Path, *, lenient: bool = False) -> None:
    """`lenient`: what one of them lacks is no difference, as for files whose prompts have no facts of their texts."""
    old, new = found.to_dict(), wanted.to_dict()
    names = old.keys() & new.keys() if lenient else old.keys() | new.keys()
    if differing := sorted(name for name in names if old.get(name, ...) != new.get(name, ...)):
        shown = (f"{k}: {old.get(k, 'nothing')!r} in the file, {new.get(k, 'nothing')!r} now" for k in differing)
        raise UsageError(f"{path} holds rounds of another kind ({'; '.join(shown)}): write to a new file")


def _refuse(name: str) -> NoReturn:
    raise UsageError(f"{name} is not a number")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def whole(value: object, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise UsageError(f"{name} must be a whole number of {least} or more, got {value!r}")
    return value


class _Parsed(NamedTuple):
    """One round: whole numbers (prompt, position, last accept length, generated) and flat arrays."""

    numbers: tuple[int, int, int, int]
    scores: array[float]
    lengths: array[int]
    signals: array[float]  # expected lengths, then the entropy
    distribution: array[float]


def _parse_round(record: dict[str, Any], header: RoundsHeader) -> _Parsed:
    """Raises ValueError, KeyError, TypeError or OverflowError."""
    tree = header.tree
    rows, lengths = record["scores"], record["accept_lengths"]
    prompt, position = whole(record["prompt"], "prompt"), whole(record["position"], "position")
    widths = {len(row) if isinstance(row, list) else -1 for row in rows} if isinstance(rows, list) else set()
    if widths != {tree.tree_top_k} or len(rows) != tree.max_calls:
        raise UsageError(f"scores are not {tree.max_calls} rows of {tree.tree_top_k}")
    if not isinstance(lengths, list) or len(lengths) != tree.max_calls:
        raise UsageError(f"accept_lengths are not {tree.max_calls} numbers")
    flat = array("f")
    for row in rows:
        try:
            flat.extend(row)
        except TypeError:  # null is -inf; a partly extended row cannot be used again
            flat = array("f", [-math.inf if v is None else v for row in rows for v in row])
            break
    last, generated, signals, distribution = -1, 0, array("f"), array("f")
    if "signals" in header.fields:
        last = whole(record["last_accept_length"], "last_accept_length", -1)
        generated = whole(record["generated"], "generated")
        expected = record["expected_lengths"]
        if not isinstance(expected, list) or len(expected) != tree.max_calls:
            raise UsageError(f"expected_lengths are not {tree.max_calls} numbers")
        signals = array("f", [*expected, record["target_entropy"]])
    if "distribution" in header.fields:
        table = record["distribution"]
        wanted = [call + 2 for call in range(tree.max_calls)]
        if not isinstance(table, list) or [len(row) if isinstance(row, list) else -1 for row in table] != wanted:
            raise UsageError(f"distribution is not {tree.max_calls} rows of 2, 3, ... numbers")
        for row in table:
            distribution.extend([*row, *[0.0] * (tree.max_calls + 1 - len(row))])
    return _Parsed((prompt, position, last, generated), flat, array("q", lengths), signals, distribution)


def _read_file(path: Path) -> RoundDataset:
    aside: dict[int, str] = {}
    kept: list[tuple[int, _Parsed]] = []  # line and round
    pending: list[tuple[int, _Parsed]] = []
    done: set[int] = set()

    def unfinished() -> None:
        aside.update((line, f"prompt {one.numbers[0]} has no prompt_done line") for line, one in pending)
        pending.clear()

    with open(path, "rb") as file:
        first = file.readline()
        if not first:
            raise UsageError(f"{path} is empty")
        header = RoundsHeader.from_line(first, path)
        for number, line in enumerate(file, start=2):
            try:
                record = _decode(line.decode())
                if not isinstance(record, dict):
                    raise UsageError("not a JSON object")
                if "prompt_done" not in record:
                    parsed = _parse_round(record, header)
                    if pending and pending[-1][1].numbers[0] != parsed.numbers[0]:
                        unfinished()
                    if parsed.numbers[0] in done:
                        raise UsageError(f"prompt {parsed.numbers[0]} was finished before")
                    pending.append((number, parsed))
                    continue
                prompt = whole(record["prompt_done"], "prompt_done")
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                aside[number] = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                continue
            if pending and pending[-1][1].numbers[0] != prompt:
                unfinished()
            done.add(prompt)
            kept.extend(pending)
            pending.clear()
        unfinished()

    if not kept:
        reasons = "; ".join(f"line {n}: {reason}" for n, reason in sorted(aside.items())[:3])
        raise UsageError(f"{path} holds no usable round" + (f" ({reasons})" if reasons else ""))
    dataset = _assemble([one for _, one in kept], header)
    bad = impossible(dataset)
    aside.update((kept[row][0], reason) for row, reason in bad.items())
    set_aside = tuple(SetAside(line, aside[line]) for line in sorted(aside))
    if set_aside:
        named = "; ".join(f"line {one.line}: {one.reason}" for one in set_aside[:10])
        more = f"; and {len(set_aside) - 10} more" if len(set_aside) > 10 else ""
        warnings.warn(f"{path}: {len(set_aside)} lines set aside ({named}{more})", stacklevel=3)
    if bad:
        keep = torch.ones(len(kept), dtype=torch.bool)
        keep[torch.tensor(list(bad))] = False
        dataset = dataset.select(keep)
    if not len(dataset):
        raise UsageError(f"{path} holds no usable round ({set_aside[0].line}: {set_aside[0].reason})")
    return replace(dataset, set_aside=set_aside)


def _assemble(rounds: Sequence[_Parsed], header: RoundsHeader) -> RoundDataset:
    count, calls = len(rounds), header.tree.max_calls

    def stack(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        joined: array[Any] = array(getattr(rounds[0], name).typecode)
        for one in rounds:
            joined.extend(getattr(one, name))
        return torch.frombuffer(joined, dtype=dtype).view(count, *shape).clone()

    numbers = torch.tensor([one.numbers for one in rounds])
    signals, distribution = None, None
    if "signals" in header.fields:
        table = stack("signals", torch.float32, calls + 1)
        signals = RecordedSignals(table[:, :calls].contiguous(), numbers[:, 2], table[:, calls], numbers[:, 3])
    if "distribution" in header.fields:
        distribution = stack("distribution", torch.float32, calls, calls + 1)
    return RoundDataset(
        stack("scores", torch.float32, calls, header.tree.tree_top_k),
        stack("lengths", torch.int64, calls),
        numbers[:, 0],
        numbers[:, 1],
        header,
        signals=signals,
        distribution=distribution,
    )
