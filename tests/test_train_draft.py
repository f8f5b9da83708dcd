"""Training of the draft head: the unrolled attention is decoding, runs resume exactly, the target stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from radar.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.train import draft as train_module
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture, encode_file
from radar.train.unroll import TestTimeAttention

VOCAB, HIDDEN, END = 64, 32, 3
CONFIG = DraftConfig(
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    draft_vocab_size=24,
    target_hidden_size=HIDDEN,
)
OPTIONS = TrainingOptions(steps=12, batch_size=4, length=12, lr=3e-3, warmup=2, ttt_length=3, progress=False)


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


def masked_attention(window: int) -> Callable[[int], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The definition: all keys of all steps side by side, and a dense mask. Returns step -> that step's `attend`."""
    keys, values = [], []

    def attend_at(step: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.append(key)
            values.append(value)
            eye = torch.eye(window, dtype=torch.bool)
            mask = torch.cat([torch.ones(window, window, dtype=torch.bool).tril(), *[eye] * step], dim=1)
            groups = query.shape[1] // key.shape[1]
            every_key = torch.cat(keys, dim=2).repeat_interleave(groups, 1)
            every_value = torch.cat(values, dim=2).repeat_interleave(groups, 1)
            scores = query @ every_key.transpose(-1, -2) / query.shape[-1] ** 0.5
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ every_value).transpose(1, 2)

        return attend

    return attend_at


def test_unrolled_attention_equals_a_dense_mask_over_all_steps() -> None:
    torch.manual_seed(1)
    draft, window = Eagle3Draft(CONFIG), 9
    first, embeds = torch.randn(2, window, HIDDEN), torch.randn(2, window + 3, HIDDEN)
    ours, dense = TestTimeAttention(), masked_attention(window)
    hidden = other = first
    for step in range(4):
        positions = torch.arange(step, window + step)[None].expand(2, window)
        part = embeds[:, step : step + window]
        hidden = draft(part, hidden, positions, ours)
        other = draft(part, other, positions, dense(step))
        torch.testing.assert_close(hidden, other, rtol=1e-5, atol=1e-5)


def test_unrolled_attention_equals_drafting_token_by_token() -> None:
    torch.manual_seed(2)
    draft, window, at = Eagle3Draft(CONFIG), 7, 4
    first, embeds = torch.randn(1, window, HIDDEN), torch.randn(1, window + 3, HIDDEN)
    ours, hidden = TestTimeAttention(), first
    unrolled = []
    for step in range(4):
        positions = torch.arange(step, window + step)[None]
        hidden = draft(embeds[:, step : step + window], hidden, positions, ours)
        unrolled.append(hidden[:, at])

    cache: list[tuple[Tensor, Tensor]] = []

    def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append((key, value))
        keys, values = (torch.cat(part, dim=2).repeat_interleave(2, 1) for part in zip(*cache, strict=True))
        causal = query.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return out.transpose(1, 2)

    row = draft(embeds[:, : at + 1], first[:, : at + 1], torch.arange(at + 1)[None], decode)[:, -1:]
    for step in range(4):
        torch.testing.assert_close(unrolled[step], row[:, 0], rtol=1e-5, atol=1e-5)
        row = draft(embeds[:, at + step + 1 : at + step + 2], row, torch.tensor([[at + step + 1]]), decode)


def test_loss_falls_and_the_head_is_written(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    short = train_draft(target, text, tmp_path / "short", config=CONFIG, options=replace(OPTIONS, steps=1))
    result = train_draft(target, text, tmp_path / "long", config=CONFIG, options=replace(OPTIONS, steps=120))
    assert json.loads(json.dumps(result)) == result
    assert result["steps"] == 120
    assert len(result["agreement"]) == OPTIONS.ttt_length
    assert all(late < early - 0.02 for late, early in zip(result["loss"], short["loss"], strict=True))
    assert sorted(path.name for path in (tmp_path / "long").iterdir()) == ["config.json", "model.safetensors"]
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
    options = replace(OPTIONS, checkpoint_every=1e-9)
    train_draft(target, text, tmp_path / "whole", config=CONFIG, options=options)

    original = TokenMixture.windows

    def interrupted(self: TokenMixture, rows: int, length: int, seed: tuple[int, ...]) -> Tensor:
        if seed[-1] == 7:
            raise KeyboardInterrupt
        return original(self, rows, length, seed)

    monkeypatch.setattr(TokenMixture, "windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_draft(target, text, tmp_path / "parts", config=CONFIG, options=options)
    assert "interrupted at step 7" in capsys.readouterr().err
    assert (tmp_path / "parts" / "training.pt").exists()
    with pytest.raises(ValueError, match=r"other settings .*lr"):
        train_draft(target, text, tmp_path / "parts", config=CONFIG, options=replace(options, lr=1e-3))
    monkeypatch.setattr(TokenMixture, "windows", original)
    result = train_draft(target, text, tmp_path / "parts", config=CONFIG, options=options)
    assert result["steps"] == OPTIONS.steps
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / "training.pt").exists()


def test_damaged_checkpoint_is_named(target: LlamaForCausalLM, text: TokenMixture, tmp_path: Path) -> None:
    (tmp_path / "training.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"training\.pt cannot be read"):
        train_draft(target, text, tmp_path, config=CONFIG, options=OPTIONS)


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


def test_files_become_documents(tmp_path: Path) -> None:
    def encode(document: str) -> list[int]:
        return [ord(character) for character in document]

    (tmp_path / "a.txt").write_text("ab\n\ncd\n\n\nef")
    (tmp_path / "b.txt").write_text("ab\n\n\ncd\fef")
    (tmp_path / "c.jsonl").write_text('{"text": "ab"}\n\n{"text": "cd"}\n')
    (tmp_path / "d.jsonl").write_text('{"prompt": "ab"}\n')
    assert encode_file(tmp_path / "a.txt", encode, eos_token_id=0).tolist() == [*b"ab\n\ncd", 0, *b"ef", 0]
    assert encode_file(tmp_path / "b.txt", encode, eos_token_id=0).tolist() == [*b"ab\n\n\ncd", 0, *b"ef", 0]
    assert encode_file(tmp_path / "c.jsonl", encode).tolist() == [*b"abcd"]
    with pytest.raises(ValueError, match=r"d\.jsonl:1"):
        encode_file(tmp_path / "d.jsonl", encode)
