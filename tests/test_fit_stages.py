"""The stages of a fit: each once, whole or gone on with, within the time that is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radar.errors import FormatError, UsageError
from radar.fit.progress import Progress
from radar.fit.stages import SHARES, Stage, Stages

ABOUT = {"model": "a", "prompts": "b"}


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr("radar.fit.stages.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def stages(folder: Path, clock: Clock, *, seconds: float = 1000.0, about: dict[str, str] = ABOUT) -> Stages:
    return Stages(folder, about, seconds=seconds, started=clock.now, progress=Progress(shown=False))


def all_of(found: Stages, make: Callable[[Stage], dict[str, Any]]) -> dict[str, Any]:
    return {name: found.run(name, make, str) for name in SHARES}


def test_an_interruption_anywhere_loses_no_stage_that_is_done(tmp_path: Path, clock: Clock) -> None:
    made: list[str] = []

    def make(stage: Stage) -> dict[str, Any]:
        made.append(stage.name)
        if made.count(stage.name) == 1:
            raise KeyboardInterrupt
        return {"by": stage.name}

    for _ in SHARES:
        with pytest.raises(KeyboardInterrupt):
            all_of(stages(tmp_path, clock), make)
    expected = {name: {"by": name} for name in SHARES}
    assert all_of(stages(tmp_path, clock), make) == expected
    assert made == [name for name in SHARES for _ in range(2)]
    assert all_of(stages(tmp_path, clock), make) == expected
    assert len(made) == 2 * len(SHARES)


def test_shares_are_of_the_time_that_is_left(tmp_path: Path, clock: Clock) -> None:
    """What a stage leaves, or takes too much, those behind it have more or less of."""
    given: dict[str, float] = {}
    takes = {"text": 100.0, "head": 200.0, "rounds": 900.0}

    def make(stage: Stage) -> dict[str, Any]:
        given[stage.name] = stage.left()
        clock.now += takes.get(stage.name, 0.0)
        assert stage.left() == pytest.approx(given[stage.name] - takes.get(stage.name, 0.0))
        return {}

    found = stages(tmp_path, clock)
    all_of(found, make)
    whole = sum(SHARES.values())
    assert given["text"] == pytest.approx(1000 * SHARES["text"] / whole)
    assert given["head"] == pytest.approx(900 * SHARES["head"] / (whole - SHARES["text"]))
    assert given["rounds"] == pytest.approx(700 * SHARES["rounds"] / (whole - SHARES["text"] - SHARES["head"]))
    assert [given[name] for name in ("costs", "policy", "judge", "report")] == [0.0] * 4
    assert found.seconds() == {**dict.fromkeys(SHARES, 0.0), **takes}


def test_first_uses_are_not_taken_from_a_share(tmp_path: Path, clock: Clock) -> None:
    """But from the whole; also by a call that goes on."""
    share, left = 1000 * SHARES["text"] / sum(SHARES.values()), []

    def make(stage: Stage) -> dict[str, Any]:
        clock.now += 20.0
        with stage.aside():
            clock.now += 400.0
            left.append(stage.left())
        left.append(stage.left())
        if len(left) == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        stages(tmp_path, clock).run("text", make, str)
    found = stages(tmp_path, clock)
    found.run("text", make, str)
    assert left == pytest.approx([share - 420, share - 20, share - 440, share - 40])
    assert found.left() == pytest.approx(1000 - 840)


def test_an_interrupted_call_has_spent_its_time(tmp_path: Path, clock: Clock) -> None:
    left: list[float] = []

    def make(stage: Stage) -> dict[str, Any]:
        left.append(stage.left())
        assert stage.settled("once", lambda: len(left)) == 1
        assert json.loads((tmp_path / "stages" / "text.json").read_text())["settled"] == {"once": 1}, "whatever comes"
        clock.now += 60.0
        if len(left) < 3:
            raise KeyboardInterrupt
        return {}

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stages(tmp_path, clock).run("text", make, str)
        clock.now += 5000.0  # nobody works
    found = stages(tmp_path, clock)
    assert found.left() == pytest.approx(880.0)
    found.run("text", make, str)
    assert left == pytest.approx([10.0 * SHARES["text"] - 60 * times for times in range(3)])


def test_what_was_made_from_something_else_is_made_anew(tmp_path: Path, clock: Clock) -> None:
    version = ["1"]

    def make(stage: Stage) -> dict[str, Any]:
        stage.folder.mkdir(exist_ok=True)
        (stage.folder / version[0]).touch()
        return {"version": version[0]} if stage.name == "head" else {}

    all_of(stages(tmp_path, clock), make)
    version[0] = "2"
    (tmp_path / "stages" / "head.json").unlink()
    all_of(stages(tmp_path, clock), make)
    names = {name: [file.name for file in (tmp_path / name).iterdir()] for name in SHARES}
    assert names == {name: ["1"] if name == "text" else ["2"] for name in SHARES}


def test_the_folder_of_another_fit_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    all_of(stages(tmp_path / "fit", clock), lambda stage: {})
    with pytest.raises(UsageError, match=r"holds the fit of another model.*\(prompts 'b', not 'c'\)"):
        stages(tmp_path / "fit", clock, about={**ABOUT, "prompts": "c"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for place in ("other", "other/file"):
        with pytest.raises(UsageError, match=r"\(--out\) holds something else"):
            stages(tmp_path / place, clock)
    with pytest.raises(UsageError, match=r"\(--out\) cannot be written"):
        stages(tmp_path / "other" / "file" / "fit", clock)
    (tmp_path / "fit" / "stages" / "text.json").write_text('{"made_of"')
    with pytest.raises(FormatError, match=r"text\.json is damaged"):
        stages(tmp_path / "fit", clock)
    assert json.loads((tmp_path / "fit" / "stages" / "about.json").read_text()) == ABOUT
