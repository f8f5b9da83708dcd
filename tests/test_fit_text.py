"""How the model's text is written: which passes over the prompts, for how long, and what is too little."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from radar.errors import UsageError
from radar.fit import text
from radar.fit.stages import Stage
from radar.tools.prompts import PromptLine

LINES = [PromptLine(f"prompt {i}", chat=False) for i in range(10)]
TOKENIZER = SimpleNamespace(encode=lambda told: [int(one) for one in told.split()], eos_token_id=1)


@pytest.fixture
def written(monkeypatch):
    """`written(seconds, tokens)` writes with a stage of so many seconds; a text has `tokens` tokens and takes one. The
    calls come back too."""
    now, calls, done, made_with = [0.0], [], {}, []

    def fake(decoder, lines, out, *, seconds, temperature, seed, **others):
        assert others["max_new_tokens"] == 100
        out.mkdir(parents=True, exist_ok=True)
        new = min(int(seconds), len(lines) - done.get(out, 0))
        count = done[out] = done.get(out, 0) + new
        calls.append((lines[0].text, temperature, seed, new))
        now[0] += new
        made = [json.dumps({"text": f"{seed + 2} " * decoder.tokens, "finish_reason": "length"}) for _ in range(count)]
        (out / "texts.jsonl").write_text("\n".join(made))
        return {"texts": count}

    monkeypatch.setattr(text, "write_texts", fake)
    monkeypatch.setattr(text, "window_of", lambda parts: 20)
    monkeypatch.setattr(text, "weights_digest", lambda model: "x")
    monkeypatch.setattr("radar.fit.stages.time.monotonic", lambda: now[0])

    def run(folder, seconds, tokens):
        parts = SimpleNamespace(
            plain=lambda rows, held: SimpleNamespace(tokens=tokens, made_with=made_with.append((rows, held))),
            kind="cpu",
            on_gpu=False,
            max_length=100,
            model=None,
            tokenizer=TOKENIZER,
            split=SimpleNamespace(text=LINES),
        )
        record = {"seconds": 0.0, "share": seconds, "settled": {"max_new_tokens": 100}}
        found = text.write(parts, Stage("text", folder, record, lambda: None)), calls
        assert made_with == [(8, 800)]
        return found

    return run


@pytest.mark.parametrize(
    ("free", "length", "rows"),
    [(8.1, 2048, 128), (7.9, 2048, 64), (1.0, 2048, 8), (0.1, 2048, 8), (4.1, 512, 128), (3.9, 512, 64)],
)
def test_as_many_texts_at_once_as_half_of_the_free_memory_takes(monkeypatch, free, length, rows):
    """A token of this model takes 32 kB, and a text holds 1,024 of them, or as many as it may have."""
    monkeypatch.setattr("radar.fit.text.torch.cuda.mem_get_info", lambda device: (int(free * 2**30), 0))
    monkeypatch.setattr(text, "cache_heads", lambda model: (8, 64))
    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=16), dtype=torch.bfloat16)
    parts = SimpleNamespace(kind="cuda", on_gpu=True, device="cuda", model=model, max_length=length)
    assert text.rows_of(parts) == rows
    assert text.cache_bytes(parts, rows) == rows * min(length, 1024) * 32768


def test_greedy_for_two_thirds_then_sampled_from_the_other_end(tmp_path, written):
    result, calls = written(tmp_path, 12, 10)
    assert calls == [("prompt 0", 0.0, 0, 8), ("prompt 9", 0.8, 1, 4)]
    assert result == {"texts": 12, "tokens": 120, "max_new_tokens": 100, "passes": 2}
    assert np.load(tmp_path / "tokens.npy").tolist() == [2] * 80 + [3] * 40


def test_few_prompts_are_answered_again_and_again(tmp_path, written):
    result, calls = written(tmp_path, 1000, 10)
    assert [(seed, count) for *_, seed, count in calls] == [(seed, 10) for seed in range(9)]
    assert result["tokens"] == 900


def test_the_least_is_written_whatever_the_clock_says(tmp_path, written):
    result, calls = written(tmp_path, 0.0, 5)
    assert result["tokens"] == 2 * 20
    assert calls == [("prompt 0", 0.0, 0, 1)] * 8


def test_too_little_is_refused(tmp_path, written, monkeypatch):
    monkeypatch.setattr(text, "window_of", lambda parts: 200)
    with pytest.raises(
        UsageError, match=r"10 prompts gave 360 tokens of text, which is too little .* 400 are the least"
    ):
        written(tmp_path, 1000, 4)
    assert not (tmp_path / "tokens.npy").exists()
