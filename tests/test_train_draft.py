"""Training of the draft head: runs resume exactly, the target stays as it is."""

from __future__ import annotations

import copy
import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from radar.cli.main import main
from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.train import draft as train_module
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture

VOCAB, HIDDEN, END = 64, 32, 3
CONFIG = DraftConfig(
    hidden_size=HIDDEN, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    vocab_size=VOCAB, draft_vocab_size=24, target_hidden_size=HIDDEN,
)  # fmt: skip
OPTIONS = TrainingOptions(steps=12, batch_size=4, length=12, lr=3e-3, warmup=2, ttt_length=3, progress=False)
HEAD = ["config.json", "model.safetensors", "training.json"]  # the files of a finished head


@pytest.fixture
def target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=END,
        initializer_range=0.3,  # sharp enough to have something to predict
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.fixture
def text() -> TokenMixture:
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.1, size=3000) + 3, VOCAB - 1)  # skewed, and without the end token
    return TokenMixture([ids[:2000].astype(np.uint16), torch.from_numpy(ids[2000:])], [0.7, 0.3])


def test_loss_falls_and_the_head_is_written(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    short = train_draft(target, text, tmp_path / "short", config=CONFIG, options=replace(OPTIONS, steps=1))
    result = train_draft(target, text, tmp_path / "long", config=CONFIG, options=replace(OPTIONS, steps=120))
    assert json.loads(json.dumps(result)) == result
    assert result["steps"] == 120
    assert len(result["agreement"]) == OPTIONS.ttt_length
    assert all(late < early - 0.02 for late, early in zip(result["loss"], short["loss"], strict=True))
    assert sorted(path.name for path in (tmp_path / "long").iterdir()) == HEAD
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    assert DraftConfig.from_dict(config) == CONFIG
    assert "eagle_aux_hidden_state_layer_ids" not in config
    tensors = load_file(tmp_path / "long" / "model.safetensors")
    chosen = tensors["d2t"] + torch.arange(CONFIG.draft_vocab_size)
    assert END in chosen.tolist()
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], chosen)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_compiling_takes_nothing_of_the_budget(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step takes a minute, each one after it a second; there are three seconds."""
    now, step = [0.0], train_module._Run._one_step

    def slow(run: Any, fraction: float) -> Any:
        now[0] += 60.0 if run.step == 0 else 1.0
        return step(run, fraction)

    monkeypatch.setattr(train_module._Run, "_one_step", slow)
    monkeypatch.setattr(train_module.time, "monotonic", lambda: now[0])
    options = replace(OPTIONS, steps=None, seconds=3.0)
    result = train_draft(target, text, tmp_path, config=CONFIG, options=options)
    assert (result["steps"], result["seconds"]) == (4, 3.0)


def test_no_gradient_reaches_a_target_that_asks_for_one(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path
) -> None:
    target.requires_grad_(True)
    train_draft(target, text, tmp_path, config=CONFIG, options=replace(OPTIONS, steps=2))
    assert all(parameter.grad is None for parameter in target.parameters())


def test_resumed_run_gives_the_same_weights(
    target: LlamaForCausalLM,
    text: TokenMixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = train_draft(target, text, tmp_path / "whole", config=CONFIG, options=OPTIONS)
    interrupt_at(7, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path / "parts", config=CONFIG, options=OPTIONS)
    err = capsys.readouterr().err
    assert f"interrupted at step 8; the same call, without resume=False (--restart), continues from {tmp_path}" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sorted(contents(tmp_path / "parts")) == ["training.pt"]
    with pytest.raises(ValueError, match=r"other settings .*lr"):
        train_draft(target, text, tmp_path / "parts", config=CONFIG, options=replace(OPTIONS, lr=1e-3))
    monkeypatch.undo()
    parts = train_draft(target, text, tmp_path / "parts", config=CONFIG, options=OPTIONS)
    for changing in ("seconds", "draft"):
        whole[changing] = parts[changing]
    assert parts == whole
    assert contents(tmp_path / "parts")["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
    assert sorted(contents(tmp_path / "parts")) == HEAD


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, *, presses: int = 1) -> None:
    """Press Ctrl-C in the midst of a step."""
    original = TokenMixture.windows

    def windows(self: TokenMixture, rows: int, length: int, seed: tuple[int, ...]) -> Tensor:
        for _ in range(presses * (seed[-1] == step)):
            signal.raise_signal(signal.SIGINT)
        return original(self, rows, length, seed)

    monkeypatch.setattr(TokenMixture, "windows", windows)


def test_a_second_interruption_ends_at_once(
    target: LlamaForCausalLM,
    text: TokenMixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(7, monkeypatch, presses=2)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    assert "interrupted at step 7; nothing was saved yet" in capsys.readouterr().err
    assert not contents(tmp_path)


def test_beginning_anew_lets_go_of_what_was_begun(
    target: LlamaForCausalLM,
    text: TokenMixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(7, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    interrupt_at(3, monkeypatch, presses=2)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS, resume=False)
    assert "interrupted at step 3; nothing was saved yet" in capsys.readouterr().err
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS, resume=False)
    assert "the same call, without resume=False (--restart), continues from" in capsys.readouterr().err


def test_an_interrupted_save_leaves_the_last_one(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    before = contents(tmp_path)

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    interrupt_at(5, monkeypatch)
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    assert contents(tmp_path) == before


def test_an_interruption_lets_the_head_be_written(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(draft: Eagle3Draft, folder: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        save_draft(draft, folder)

    monkeypatch.setattr(train_module, "save_draft", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    assert sorted(contents(tmp_path)) == HEAD


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
def test_damaged_state_is_named(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a head")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be read, .*--restart"):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_head_is_kept(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=2)
    result = train_draft(target, text, tmp_path / "head", config=CONFIG, options=options)
    (tmp_path / "head").rename(tmp_path / "moved")
    out, before = tmp_path / "moved", contents(tmp_path / "moved")
    again = train_draft(target, text, out, config=CONFIG, options=replace(options, checkpoint_every=1.0))
    assert again == result | {"draft": str(out)}
    tuned = copy.deepcopy(target)
    tuned.model.layers[5].mlp.up_proj.weight.data[0, 3] += 0.1  # same shapes, another model
    with pytest.raises(ValueError, match=r"other settings \(steps 2 there, 3 here\): .*--restart"):
        train_draft(target, text, out, config=CONFIG, options=replace(options, steps=3))
    with pytest.raises(ValueError, match=r"other settings \(target .*--restart"):
        train_draft(tuned, text, out, config=CONFIG, options=options)
    assert contents(out) == before
    anew = train_draft(target, text, out, config=CONFIG, options=replace(options, steps=3), resume=False)
    assert anew["steps"] == 3
    assert sorted(contents(out)) == HEAD
    assert train_draft(target, text, out, config=CONFIG, options=replace(options, steps=3)) == anew


def test_a_head_from_elsewhere_is_kept(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    save_draft(Eagle3Draft(CONFIG), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds a head whose training left no training\.json: .*--restart"):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("checkpoint_every", [0.0, 1e-9])
def test_what_is_not_finite_reaches_no_file(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, checkpoint_every: float
) -> None:
    options = replace(OPTIONS, steps=15, lr=1e30, checkpoint_every=checkpoint_every)
    with pytest.raises(ValueError, match=r"not finite at step \d+: lower lr \(now 1e\+30\)"):
        train_draft(target, text, tmp_path, config=CONFIG, options=options)
    for path in tmp_path.iterdir():
        weights = torch.load(path, weights_only=True)["draft"]
        assert all(value.isfinite().all() for value in weights.values())
    assert sorted(contents(tmp_path)) == ["training.pt"] * bool(checkpoint_every)


def test_weights_are_looked_at_after_the_last_step(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is that of the weights before it."""
    step = train_module._Run._one_step

    def overflowing(run: Any, fraction: float) -> Any:
        found = step(run, fraction)
        run.draft.fc.weight.data[1, 2] = torch.inf
        return found

    monkeypatch.setattr(train_module._Run, "_one_step", overflowing)
    with pytest.raises(ValueError, match="loss or weights are not finite at step 1"):
        train_draft(target, text, tmp_path, config=CONFIG, options=replace(OPTIONS, steps=1))
    assert not contents(tmp_path)


def test_a_loss_that_is_not_finite_ends_a_long_run(
    target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not finite at step 20"):
        train_draft(target, text, tmp_path, config=CONFIG, options=replace(OPTIONS, steps=1000, lr=1e30))


def test_taps_can_be_chosen_and_are_hidden_states(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=1)
    train_draft(target, text, tmp_path, config=CONFIG, options=options, tap_layers=[0, 3, 5])
    assert json.loads((tmp_path / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"] == [0, 3, 5]
    frozen = train_module._Target(target, [0, 3, 5], torch.device("cpu"))
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
        (replace(CONFIG, hidden_size=16), None, "hidden_size 16"),
        (replace(CONFIG, vocab_size=65), None, "vocab_size 65"),
        (CONFIG, [1, 2, 6], "from 0 to 5"),
        (CONFIG, [1, 2], "num_aux_hidden_states"),
    ],
)
def test_wrong_geometry_is_refused(
    target: LlamaForCausalLM,
    text: TokenMixture,
    tmp_path: Path,
    config: DraftConfig,
    taps: list[int] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        train_draft(target, text, tmp_path, config=config, options=OPTIONS, tap_layers=taps)
    assert not any(layer._forward_hooks for layer in target.model.layers)


def test_wrong_text_is_refused(target: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights"):
        TokenMixture([np.arange(10)], [0.0])
    with pytest.raises(ValueError, match="integers"):
        TokenMixture([np.zeros(10)])
    with pytest.raises(ValueError, match="every stream must hold 15"):
        train_draft(target, TokenMixture(np.arange(10)), tmp_path, config=CONFIG, options=OPTIONS)
    with pytest.raises(ValueError, match="token id 99"):
        train_draft(target, TokenMixture(np.arange(100)), tmp_path, config=CONFIG, options=OPTIONS)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`radar train-draft` on the embedded target, of one small step."""
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n\n\n\n" * 20)
    assets = Path(train_module.__file__).parent.parent / "assets" / "target"
    words = f"train-draft --target {assets} --text {tmp_path}/text.txt --out {tmp_path}/head --no-progress --device cpu"
    return [*words.split(), *["--batch-size", "1", "--length", "8", "--ttt-length", "2"]]


SMALL = ["--intermediate-size", "8", "--draft-vocab-size", "16"]


def test_the_command_keeps_a_finished_head(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *SMALL, "--steps", "1"]) == 0
    first, before = capsys.readouterr().out, contents(tmp_path / "head")
    assert main([*command, *SMALL, "--steps", "1"]) == 0
    assert capsys.readouterr().out == first
    assert main([*command, *SMALL, "--steps", "2"]) == 2
    assert re.search(r"^radar train-draft: .*steps 1 there, 2 here.*--restart", capsys.readouterr().err, re.MULTILINE)
    assert contents(tmp_path / "head") == before
    assert main([*command, *SMALL, "--steps", "2", "--restart"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2


@pytest.mark.parametrize("option", ["--steps", "--intermediate-size", "--draft-vocab-size"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_size_of_nothing_is_not_the_default(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main([*command, "--seconds" if option != "--steps" else "--seed", "1", f"{option}={value}"]) == 2
    assert f"radar train-draft: {option} must be 1 or more, got {value}" in capsys.readouterr().err
    assert not (tmp_path / "head").exists()
