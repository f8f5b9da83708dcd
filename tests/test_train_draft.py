"""Training of the draft head: it learns, the target stays as it is, and what cannot be trained is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_heads import CONFIG, END, HEAD, OPTIONS, VOCAB, contents, small_target, small_text, train

from radar.draft.config import DraftConfig
from radar.train.draft import DraftRun, TrainingOptions
from radar.train.draft_target import FrozenTarget
from radar.train.tokens import TokenMixture

Patch = pytest.MonkeyPatch


def test_loss_falls_and_the_head_is_written(tmp_path: Path) -> None:
    target = small_target()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    short = train(tmp_path / "short", replace(OPTIONS, steps=1), model=target)
    result = train(tmp_path / "long", replace(OPTIONS, steps=120), model=target)
    assert json.loads(json.dumps(result)) == result
    assert result["steps"] == 120
    assert len(result["agreement"]) == OPTIONS.ttt_length
    assert all(late < early - 0.02 for late, early in zip(result["loss"], short["loss"], strict=True))
    assert sorted(path.name for path in (tmp_path / "long").iterdir()) == HEAD
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 3, 3], "the taps that it was trained on, chosen or not"
    assert DraftConfig.from_dict(config) == replace(CONFIG, eagle_aux_hidden_state_layer_ids=(2, 3, 3))
    tensors = load_file(tmp_path / "long" / "model.safetensors")
    chosen = tensors["d2t"] + torch.arange(CONFIG.draft_vocab_size)
    assert END in chosen.tolist()
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], chosen)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_compiling_takes_nothing_of_the_budget_and_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    """The first step takes a minute, each one after it a second; there are three seconds."""
    now, update = [0.0], DraftRun._update

    def slow(run: Any, losses: torch.Tensor) -> None:
        now[0] += 60.0 if run.step == 0 else 1.0
        update(run, losses)

    monkeypatch.setattr(DraftRun, "_update", slow)
    monkeypatch.setattr("radar.train.draft.time.monotonic", lambda: now[0])
    result = train(tmp_path / "later", replace(OPTIONS, steps=None, seconds=3.0))
    assert (result["steps"], result["seconds"]) == (4, 63.0)
    now[0] = 0.0
    result = train(tmp_path / "all", replace(OPTIONS, steps=None, seconds=62.5, whole_seconds=True))
    assert (result["steps"], result["seconds"]) == (4, 63.0), "unless all of it is"


def test_one_step_takes_time(tmp_path: Path) -> None:
    assert train(tmp_path, replace(OPTIONS, steps=1))["seconds"] > 0


@pytest.mark.parametrize(
    ("step", "steps", "said"), [(20.0, 2001, "11.1 hours"), (0.5, 3701, "0.5 hours"), (0.1, 9001, "")]
)
def test_hours_are_told_after_the_first_step(
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
    step: float,
    steps: int,
    said: str,
) -> None:
    now, update = [0.0], DraftRun._update

    def timed(run: Any, losses: torch.Tensor) -> None:
        if run.step == 1:
            raise KeyboardInterrupt
        now[0] += step
        update(run, losses)

    monkeypatch.setattr(DraftRun, "_update", timed)
    monkeypatch.setattr("radar.train.draft.time.monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "steps", replace(OPTIONS, steps=steps))
    found = capsys.readouterr().err
    expected = f"{steps - 1} steps of about {step:.1f} s will take about {said} on this device. Ctrl-C stops and keeps"
    assert (expected in found) if said else ("will take" not in found)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "budget", replace(OPTIONS, steps=None, seconds=1e6))
    assert "will take" not in capsys.readouterr().err, "who gives a budget knows it"


def test_no_gradient_reaches_a_target_that_asks_for_one(tmp_path: Path) -> None:
    target = small_target().requires_grad_(True)
    train(tmp_path, replace(OPTIONS, steps=2), model=target)
    assert all(parameter.grad is None for parameter in target.parameters())


def test_taps_can_be_chosen_and_are_hidden_states(tmp_path: Path) -> None:
    target = small_target()
    train(tmp_path, replace(OPTIONS, steps=1), model=target, tap_layers=[0, 3, 5])
    assert json.loads((tmp_path / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"] == [0, 3, 5]
    frozen = FrozenTarget(target, [0, 3, 5])
    ids = torch.arange(10)[None]
    aux, embeds, _, _ = frozen.read(ids, 8, torch.arange(VOCAB), torch.arange(VOCAB))
    states = target(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(aux, torch.cat([states[i][:, :8] for i in (0, 3, 5)], dim=-1))
    torch.testing.assert_close(embeds, target.model.embed_tokens(ids[:, 1:]))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": None},
        {"steps": 1, "seconds": 1.0},
        {"steps": 0},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "length": 1},
        {"steps": 1, "lr": 0.0},
        {"steps": 1, "lr": float("nan")},
        {"steps": 1, "ttt_length": 0},
        {"steps": 1, "checkpoint_every": -1.0},
        {"seconds": -2.0},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"steps|batch_size|length|lr|checkpoint_every|seconds"):
        TrainingOptions(**options)


@pytest.mark.parametrize(
    ("config", "taps", "message"),
    [
        ({"hidden_size": 16}, None, "hidden_size 16"),
        ({"vocab_size": 65}, None, "vocab_size 65"),
        ({}, [1, 2, 6], "from 0 to 5"),
        ({}, [1, 2], "num_aux_hidden_states"),
        ({"draft_vocab_size": 5}, None, r"\(--draft-vocab-size\) must be 10 or more, a draft call's beam, got 5"),
    ],
)
def test_wrong_geometry_is_refused(
    tmp_path: Path, config: dict[str, Any], taps: list[int] | None, message: str
) -> None:
    target = small_target()
    with pytest.raises(ValueError, match=message):
        train(tmp_path, model=target, config=replace(CONFIG, **config), tap_layers=taps)
    assert not any(layer._forward_hooks for layer in target.model.layers)


def test_a_vocabulary_that_misses_the_text_is_refused(tmp_path: Path) -> None:
    """Of sixty tokens that are equally frequent twenty-four cover two fifths."""
    even = TokenMixture([np.arange(6000) % 60])
    message = r"24 covers 40% of the text, and what it lacks is never drafted: the 54 most frequent tokens cover 90 %"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, text=even)
    train(tmp_path, replace(OPTIONS, steps=1), text=even, config=replace(CONFIG, draft_vocab_size=40))


@pytest.mark.parametrize(("positions", "length"), [(14, 12), (15, 12), (15, 13)])
def test_a_window_beyond_the_targets_positions_is_refused(tmp_path: Path, positions: int, length: int) -> None:
    target, options = small_target(max_position_embeddings=positions), replace(OPTIONS, steps=1, length=length)
    if length + OPTIONS.ttt_length <= positions:
        train(tmp_path, options, model=target)
        return
    message = rf"length \(--length\) {length} .* target's {positions} positions: .* {positions - 3} is the most"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, options, model=target)
    assert not contents(tmp_path)


def test_wrong_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights"):
        TokenMixture([np.arange(10)], [0.0])
    with pytest.raises(ValueError, match="integers"):
        TokenMixture([np.zeros(10)])
    with pytest.raises(ValueError, match=r"every stream must hold 15 .*smaller length \(--length\)"):
        train(tmp_path, text=TokenMixture([np.arange(10)]))
    with pytest.raises(ValueError, match="token id 99"):
        train(tmp_path, text=TokenMixture([np.arange(100)]))


def test_the_text_of_the_tests_is_what_they_say() -> None:
    assert END not in np.concatenate(small_text().streams)
