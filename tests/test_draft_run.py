"""Training of a draft head that is interrupted, gone on with and extended: runs resume exactly, nothing is lost."""

from __future__ import annotations

import copy
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import CONFIG, HEAD, OPTIONS, contents, interrupt_at, small_target, train

from radar.draft.checkpoint import save_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.target.digest import weights_digest
from radar.train import draft as training
from radar.train.draft import DraftRun

Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def interrupted(out: Path, step: int, monkeypatch: Patch, *, times: int = 1, **options: Any) -> None:
    """A run that ends in its step `step`, counted from 0."""
    with monkeypatch.context() as patch:
        interrupt_at(step, patch, presses=times, number=options.pop("number", signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(out, **options)


def same_but_for_time(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one | {"seconds": 0, "draft": ""} == other | {"seconds": 0, "draft": ""}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, monkeypatch: Patch, capsys: Capture, number: int) -> None:
    """Long before the first checkpoint is due; the step in which it was stopped is done again."""
    whole = train(tmp_path / "whole")
    interrupted(tmp_path / "parts", 7, monkeypatch, number=number)
    err = capsys.readouterr().err
    assert "interrupted in step 8: saving the 7 before it" in err
    assert f"saved 7 steps to {tmp_path / 'parts' / 'training.pt'}; the same command, without --restart, goes on" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(contents(tmp_path / "parts")) == ["training.pt"]
    with pytest.raises(ValueError, match=r"other settings .*lr"):
        train(tmp_path / "parts", replace(OPTIONS, lr=1e-3))
    parts = train(tmp_path / "parts")
    assert same_but_for_time(parts, whole)
    assert contents(tmp_path / "parts")["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
    assert sorted(contents(tmp_path / "parts")) == HEAD


def test_an_update_is_whole(tmp_path: Path, monkeypatch: Patch) -> None:
    """A signal within the optimizer's step waits for its end: the state has it or has it not."""
    update, sent = DraftRun._update, []

    def hit(run: Any, now: torch.Tensor) -> None:
        if run.step == 4 and not sent:
            sent.append(signal.raise_signal(signal.SIGINT))
        update(run, now)

    monkeypatch.setattr(DraftRun, "_update", hit)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "training.pt", weights_only=True)["step"] == 5
    assert same_but_for_time(train(tmp_path / "parts"), train(tmp_path / "whole"))


def test_nothing_is_lost_by_stopping_at_once(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    interrupted(tmp_path, 0, monkeypatch)
    assert "interrupted in the first step: there is nothing to save yet" in capsys.readouterr().err
    assert not contents(tmp_path)


def test_beginning_anew_lets_go_of_what_was_begun(tmp_path: Path, monkeypatch: Patch) -> None:
    interrupted(tmp_path, 7, monkeypatch)
    interrupted(tmp_path, 3, monkeypatch, resume=False)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 3


def test_an_interrupted_save_leaves_the_last_one(tmp_path: Path, monkeypatch: Patch) -> None:
    interrupted(tmp_path, 2, monkeypatch)
    before = contents(tmp_path)

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch, "save", half)
    interrupted(tmp_path, 5, monkeypatch)
    assert contents(tmp_path) == before


def test_an_interruption_lets_the_head_be_written(tmp_path: Path, monkeypatch: Patch) -> None:
    def hit(draft: Eagle3Draft, folder: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        save_draft(draft, folder)

    monkeypatch.setattr(training, "save_draft", hit)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert sorted(contents(tmp_path)) == HEAD


def test_a_finished_head_is_kept(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=2)
    result = train(tmp_path / "head", options)
    (tmp_path / "head").rename(tmp_path / "moved")
    out, before = tmp_path / "moved", contents(tmp_path / "moved")
    assert train(out, replace(options, checkpoint_every=1.0)) == result | {"draft": str(out)}
    target = small_target()
    tuned = copy.deepcopy(target)
    tuned.model.layers[5].mlp.up_proj.weight.data[0, 3] += 0.1  # same shapes, another model
    with pytest.raises(ValueError, match=r"other settings \(target .*--restart"):
        train(out, options, model=tuned)
    with pytest.raises(ValueError, match=r"is 2 steps, .*asked for are \{'steps': 1, .*--restart"):
        train(out, replace(options, steps=1))
    assert contents(out) == before
    assert train(out, replace(options, steps=3), resume=False)["steps"] == 3
    assert sorted(contents(out)) == HEAD


def test_a_finished_head_can_be_extended(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    """By steps or by time; while that goes on the head that is there stays."""
    train(tmp_path)
    before = contents(tmp_path)
    interrupted(tmp_path, 15, monkeypatch, options=replace(OPTIONS, steps=20))
    now = contents(tmp_path)
    assert [name for name in HEAD if now[name] != before[name]] == ["training.pt"]
    assert train(tmp_path)["steps"] == 12, "the finished one is still to be had"
    result = train(tmp_path, replace(OPTIONS, steps=20))
    assert (result["steps"], result["tokens"]) == (20, 20 * 4 * 12)
    assert contents(tmp_path)["model.safetensors"] != before["model.safetensors"]
    assert train(tmp_path, replace(OPTIONS, steps=20)) == result
    assert "more steps or seconds extend it" in capsys.readouterr().err
    assert train(tmp_path, replace(OPTIONS, steps=None, seconds=result["seconds"] + 0.3))["steps"] > 20
    (tmp_path / "training.pt").unlink()
    with pytest.raises(ValueError, match=r"holds a head without training\.pt to go on from: use another folder"):
        train(tmp_path, replace(OPTIONS, steps=99))


def test_an_unfinished_run_may_be_given_another_length(tmp_path: Path, monkeypatch: Patch) -> None:
    interrupted(tmp_path, 7, monkeypatch)
    with pytest.raises(ValueError, match=r"is 7 steps, .*asked for are \{'steps': 5"):
        train(tmp_path, replace(OPTIONS, steps=5))
    assert train(tmp_path, replace(OPTIONS, steps=9))["steps"] == 9


def test_a_head_from_elsewhere_is_kept(tmp_path: Path) -> None:
    save_draft(Eagle3Draft(CONFIG), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds a head without training\.pt to go on from: .*--restart"):
        train(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.pt", b"PK\x03\x04 torn"),
        ("training.pt", b"no pickle"),
        ("training.json", b"{"),
        ("training.json", b"[]"),
        ("training.json", b'{"settings": 3}'),
    ],
)
def test_damaged_state_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a head")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be read, .*--restart"):
        train(tmp_path)


@pytest.mark.parametrize("checkpoint_every", [0.0, 1e-9])
def test_what_is_not_finite_reaches_no_file(tmp_path: Path, checkpoint_every: float) -> None:
    options = replace(OPTIONS, steps=15, lr=1e30, checkpoint_every=checkpoint_every)
    with pytest.raises(ValueError, match=r"not finite at step \d+: lower lr \(now 1e\+30\)"):
        train(tmp_path, options)
    for path in tmp_path.iterdir():
        weights = torch.load(path, weights_only=True)["network"]
        assert all(value.isfinite().all() for value in weights.values())
    assert sorted(contents(tmp_path)) == ["training.pt"] * bool(checkpoint_every)


def test_weights_are_looked_at_after_the_last_step(tmp_path: Path, monkeypatch: Patch) -> None:
    """Its loss is that of the weights before it."""
    update = DraftRun._update

    def overflowing(run: Any, now: torch.Tensor) -> None:
        update(run, now)
        run.draft.fc.weight.data[1, 2] = torch.inf

    monkeypatch.setattr(DraftRun, "_update", overflowing)
    with pytest.raises(ValueError, match="loss or weights are not finite at step 1"):
        train(tmp_path, replace(OPTIONS, steps=1))
    assert not contents(tmp_path)


def test_a_loss_that_is_not_finite_ends_a_long_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite at step 20"):
        train(tmp_path, replace(OPTIONS, steps=1000, lr=1e30))


class Quantised(torch.Tensor):
    """As torchao's: it says its shape, and gives no bytes."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("flatten", "view", "numpy"):
            raise NotImplementedError
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_are_told_apart_whatever_they_are_made_of() -> None:
    def module(kind: type[torch.Tensor], value: float) -> torch.nn.Module:
        made = torch.nn.Module()
        made.register_buffer("scale", torch.full((3, 2), value))
        made.register_buffer("weight", torch.ones(4, 4).as_subclass(kind))
        return made

    plain = {weights_digest(module(torch.Tensor, value)) for value in (1.0, 1.0, 2.0)}
    quantised = {weights_digest(module(Quantised, value)) for value in (1.0, 1.0, 2.0)}
    assert (len(plain), len(quantised), len(plain & quantised)) == (2, 2, 0)
