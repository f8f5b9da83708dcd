"""The writer of recorded rounds: append-only files as `radar.train.dataset` describes and reads them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.train.dataset import check_same, whole
from radar.train.rounds import RecordedSignals, RoundDataset, RoundsHeader, impossible, shapes

__all__ = ["RoundWriter"]

Facts = Mapping[int, Mapping[str, Any]]  # by prompt


class RoundWriter:
    """Appends whole prompts. Opening a file again cuts off what a crash left: a torn line, an unfinished prompt.

    `done` holds the prompts already in the file with what their `prompt_done` lines say; `facts`, by prompt, go there.
    ValueError: the file is of another kind, or its header or facts differ; it stays as it was.
    """

    def __init__(self, path: str | os.PathLike[str], header: RoundsHeader, facts: Facts | None = None) -> None:
        self.path, self.header, self.facts = Path(path), header, facts or {}
        first = _line(header.to_dict())
        keep, self.done = _recover(self.path, header, first)
        _check_facts(self.done, self.facts, self.path)
        self._file = open(self.path, "ab")  # noqa: SIM115  closed by close()
        self._file.truncate(keep)
        if keep == 0:
            self._write(first)

    def write_prompt(
        self,
        prompt: int,
        position: Tensor,
        scores: Tensor,
        accept_lengths: Tensor,
        *,
        signals: RecordedSignals | None = None,
        distribution: Tensor | None = None,
    ) -> None:
        """Rounds of one prompt, in order; shapes as in `RoundDataset`, optional parts as the header's fields say."""
        if prompt in self.done:
            raise UsageError(f"write_prompt: prompt {prompt} is in {self.path} already")
        given = {"signals": signals is not None, "distribution": distribution is not None}
        if wrong := [name for name, there in given.items() if there != (name in self.header.fields)]:
            raise UsageError(f"write_prompt: fields of the header are {self.header.fields}, not so: {', '.join(wrong)}")
        data = RoundDataset(
            scores.detach().to("cpu", torch.float32),
            accept_lengths.detach().to("cpu", torch.int64),
            torch.full((len(scores),), prompt),
            position.detach().to("cpu", torch.int64),
            self.header,
            signals=None if signals is None else RecordedSignals(*(part.detach().cpu() for part in signals)),
            distribution=None if distribution is None else distribution.detach().to("cpu", torch.float32),
        )
        expected, found = shapes(data)
        if found != expected:
            raise UsageError(f"write_prompt: expected scores, accept_lengths, position of {expected}, got {found}")
        if reasons := impossible(data):
            raise UsageError(f"write_prompt: round {min(reasons)} of prompt {prompt}: {reasons[min(reasons)]}")
        lines = [_line(_record(data, n)) for n in range(len(data))]
        facts = dict(self.facts.get(prompt, {}))
        self._write(b"".join([*lines, _line({"prompt_done": prompt, **facts})]))
        self.done[prompt] = facts

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


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _record(data: RoundDataset, n: int) -> dict[str, Any]:
    """Round n as it stands in the file."""
    rows = [[None if value == -math.inf else round(value, 5) for value in row] for row in data.scores[n].tolist()]
    record = {"prompt": int(data.prompt[n]), "position": int(data.position[n]), "scores": rows}
    record["accept_lengths"] = data.accept_lengths[n].tolist()
    if data.signals is not None:
        values: list[Any] = [part[n].tolist() for part in data.signals]
        expected, last, entropy, generated = values
        record["expected_lengths"] = [round(value, 5) for value in expected]
        record |= {"last_accept_length": last, "target_entropy": round(entropy, 5), "generated": generated}
    if data.distribution is not None:
        table = data.distribution[n].tolist()
        record["distribution"] = [[round(p, 6) for p in row[: call + 2]] for call, row in enumerate(table)]
    return record


def _recover(path: Path, header: RoundsHeader, first: bytes) -> tuple[int, dict[int, dict[str, Any]]]:
    """(bytes to keep, facts of the prompts done) of a file that is about to be appended to."""
    done: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return 0, done
    keep, found = 0, header
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                if keep == 0 and not first.startswith(line):
                    raise UsageError(f"{path}: not a file of recorded rounds, and not overwritten")
                break
            if keep == 0:
                found = RoundsHeader.from_line(line, path)
                if (found_version := json.loads(line)["version"]) != header.to_dict()["version"]:
                    raise UsageError(
                        f"{path} is of format version {found_version}, which is not appended to here: use a new file"
                    )
                keep = end = len(line)
                continue
            end += len(line)
            if b'"prompt_done"' in line:
                try:
                    facts = json.loads(line)
                    done[whole(facts.pop("prompt_done"), "prompt_done")] = facts
                    keep = end
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a damaged line: its prompt is recorded again
    check_same(found, header, path, lenient=not all(done.values()))
    return keep, done


def _check_facts(done: Facts, facts: Facts, path: Path) -> None:
    """Prompts that are done have to be of the texts of now, as far as the file says."""
    others: dict[str, str] = {}
    for prompt in sorted(done.keys() & facts.keys()):
        for name, now in facts[prompt].items():
            if (found := done[prompt].get(name, now)) != now:
                others.setdefault(name, f"{name} of prompt {prompt}: {found!r} in the file, {now!r} now")
    if others:
        raise UsageError(f"{path} holds other texts ({'; '.join(others.values())}): write to a new file, or as there")
