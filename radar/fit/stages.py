"""Stages of a fit: each is done once, within its share of the time, and is known by what it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from radar.errors import FormatError, UsageError
from radar.files import replacing
from radar.fit.progress import Progress
from radar.policy.fitted import FITTED_FILE

__all__ = ["SHARES", "Stage", "Stages", "clock"]

T = TypeVar("T")

SHARES = {"text": 30, "head": 48, "rounds": 9, "costs": 3, "policy": 6, "judge": 3, "report": 1}
"""Of the time, in the order of the stages. What one leaves, the others share."""
ABOUT = "about"


def clock(seconds: float) -> str:
    """Minutes and seconds, as m:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Stage:
    """One of them, while it is done.

    Attributes:
        folder: for what it makes; nobody else writes there.
    """

    def __init__(self, name: str, folder: Path, record: dict[str, Any], save: Callable[[], None]) -> None:
        self.name, self.folder = name, folder
        self._record, self._save = record, save
        self._began, self._before = time.monotonic(), float(record["seconds"])

    def spent(self) -> float:
        """Seconds, those of interrupted calls included."""
        return self._before + time.monotonic() - self._began

    def left(self) -> float:
        """Seconds of its share that are left, below zero where it is overdrawn."""
        return float(self._record["share"] + self._record.get("aside", 0.0)) - self.spent()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For first uses, which compile and capture: a time that does not depend on the share, and is not taken from
        it. The later stages have less."""
        before = self.spent()
        try:
            yield
        finally:
            self._record["aside"] = self._record.get("aside", 0.0) + self.spent() - before

    def settled(self, name: str, make: Callable[[], T]) -> T:
        """A choice that depends on clock or machine: made once, so that whoever goes on finds the same. JSON types."""
        if name not in self._record["settled"]:
            self._record["settled"][name] = make()
            self._save()
        value: T = self._record["settled"][name]
        return value


class Stages:
    """A folder with what was done so far.

    Args:
        folder: of the fit; made if it is not there.
        about: what all of it is made from, JSON types: another folder's has to be equal.
        seconds: of all stages together, interrupted calls included.
        started: `time.monotonic()` at the call: what came before the stages counts too.
        progress: told of each stage.

    Raises:
        UsageError: the folder is of another model or other prompts, or holds something else.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, seconds: float, started: float, progress: Progress
    ) -> None:
        self.folder, self.records, self._progress = folder, folder / "stages", progress
        self._chain = [json.dumps(about, sort_keys=True)]
        self._check(dict(about))
        earlier = sum(float(_read(self._file(name))["seconds"]) for name in SHARES if self._file(name).exists())
        self._ends = started + seconds - earlier
        progress.begin(earlier + time.monotonic() - started, seconds)

    def left(self) -> float:
        """Seconds of the whole."""
        return self._ends - time.monotonic()

    def run(self, name: str, make: Callable[[Stage], dict[str, Any]], say: Callable[[dict[str, Any]], str]) -> Any:
        """The result of a stage, JSON types: of an earlier call, or what `make` returns now.

        A stage whose earlier ones have changed is begun anew. `say` puts its result into words.
        """
        file, folder = self._file(name), self.folder / name
        made_of = hashlib.sha256("\n".join(self._chain).encode()).hexdigest()[:16]
        record: dict[str, Any] = _read(file) if file.exists() else {}
        if record.get("made_of") != made_of:
            shutil.rmtree(folder, ignore_errors=True)  # before the record says otherwise
            record = {"made_of": made_of, "share": self._share(name), "seconds": 0.0, "settled": {}, "result": None}
        said = "done before"
        if record["result"] is None:
            self._progress.stage(name, list(SHARES).index(name) + 1, len(SHARES))
            (self.folder / FITTED_FILE).unlink(missing_ok=True)  # nobody decodes with what is being changed
            stage = Stage(name, folder, record, lambda: _write(file, record))
            try:
                _write(file, record)
                record["result"] = json.loads(json.dumps(make(stage)))
            finally:
                record["seconds"] = round(stage.spent(), 3)
                _write(file, record)
            said = clock(record["seconds"])
        result: Any = record["result"]
        self._progress.say(f"{name:6} {said}  {say(result)}")
        self._chain.append(json.dumps(result, sort_keys=True))
        return result

    def seconds(self) -> dict[str, float]:
        """What each stage took so far."""
        return {name: _read(file)["seconds"] for name in SHARES if (file := self._file(name)).exists()}

    def _share(self, name: str) -> float:
        names = list(SHARES)
        shares = [SHARES[one] for one in names[names.index(name) :]]
        return max(0.0, self.left()) * shares[0] / sum(shares)

    def _file(self, name: str) -> Path:
        return self.records / f"{name}.json"

    def _check(self, about: dict[str, Any]) -> None:
        file = self._file(ABOUT)
        if file.exists():
            there = _read(file)
            if other := [f"{key} {there.get(key)!r}, not {value!r}" for key, value in about.items()
                         if there.get(key) != value]:  # fmt: skip
                raise UsageError(
                    f"{self.folder} (--out) holds the fit of another model, machine or file of prompts "
                    f"({'; '.join(other)}): give another folder, or those"
                )
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} (--out) holds something else: give a new folder, or that of a fit")
        try:
            _write(file, about)
        except OSError as error:
            raise UsageError(f"{self.folder} (--out) cannot be written: {error.strerror}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{file} is damaged ({error}): remove it, and its stage is done anew") from error


def _write(file: Path, values: Mapping[str, Any]) -> None:
    with replacing(file.parent) as place:
        (place / file.name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
