"""A small pair from nothing: target, its own text, head; and the corpus that they read."""

import json

import numpy as np
import pytest

from bench.lab import data as corpus
from bench.lab import train_pair
from bench.lab.tokenizer import chat, encode, plain, save_tokenizer, train_tokenizer
from bench.tables import TASKS


@pytest.fixture
def data(tmp_path):
    """What `bench.lab.data` writes, of a few words."""
    folder = tmp_path / "data"
    folder.mkdir()
    words = [f"{a}{b} {a * 2}{b * 3}" for a in "abcdefgh" for b in "ijklmnop"]
    tokenizer = train_tokenizer(iter(words), 300)
    save_tokenizer(tokenizer, folder / "tokenizer")
    texts = {"instruct": [chat(word, word * 3) for word in words], "python": [plain(word * 6) for word in words]}
    for name, documents in texts.items():
        stream = encode(tokenizer, documents)
        np.save(folder / f"{name}.npy", stream)
        np.save(folder / f"{name}_val.npy", stream[:400])
    rows = [{"prompt": word, "chat": True, "source": "mbpp"} for word in words[:2]]
    (folder / "heldout_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_pair_is_trained_and_what_is_there_is_kept(data, tmp_path, monkeypatch):
    out = tmp_path / "pair"
    words = ["vicuna", "--size", "smoke", "--data", str(data), "--out", str(out), "--limit", "1"]
    words += [word for stage in ("target", "text", "head") for word in (f"--{stage}-seconds", "0.2")]
    assert train_pair.main(words) == 0
    record = json.loads((out / "pair.json").read_text())
    assert record["target"]["steps"] >= 1
    assert record["held_out_fixed_8"]["mean_acceptance_length"] >= 1
    stream = np.load(out / "text.npy")
    assert len(stream) == json.loads((out / "text.json").read_text())["tokens"] > 0
    assert stream[0] == 0  # every document begins with the start token
    for name in ("train_target", "write_text", "train_head"):
        monkeypatch.setattr(train_pair, name, None)  # called, it would fail
    assert train_pair.main(words) == 0


def test_what_measures_and_its_near_twins_are_not_in_the_corpus(tmp_path, capsys):
    question = "Write a function to find the largest of three given numbers."
    twin = question.replace("a function", "a python function")
    for task in TASKS:
        (tmp_path / f"q_{task}.jsonl").write_text(json.dumps({"turns": [question]}) + "\n")
    (tmp_path / "gsm8k_train.jsonl").write_text(json.dumps({"question": "How many?", "answer": "4"}) + "\n")
    rows = [
        {"task_id": n, "text": text, "code": "pass"} for n, text in ((1, twin), (511, "Other."), (601, "Sort a list."))
    ]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("codegen", "roleplay", "toolformer"):
        found = [{"instruction": f"preamble\n{name} {n}", "response": "yes"} for n in range(3)]
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    pairs = corpus.read_pairs(tmp_path, tmp_path, tool_use=1)
    kinds = [source for source, _, _ in pairs]
    assert [question for source, question, _ in pairs if source == "mbpp"] == ["Sort a list."]
    assert [kinds.count(name) for name in ("gsm8k", "codegen", "roleplay", "toolformer")] == [1, 3, 3, 1]
    assert "1 of 10 questions are near-twins" in capsys.readouterr().out
