"""`bench.released` on a tiny pair: every method decodes every prompt, it goes on where it was, nothing cold counts."""

import json
from collections import Counter

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target

from bench import released
from bench.lab.tokenizer import save_tokenizer, train_tokenizer
from bench.runs import AUTOREGRESSIVE, key_of, read_runs
from bench.shapes import Geometry
from bench.tables import TASKS
from radar import FixedDepth, Threshold
from radar.draft.checkpoint import save_draft
from radar.policy.baselines import Capped
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy

VOCAB, LIVE, TOKENS = 300, 17, 8  # ids of the tokenizer; those that the tiny model ever says
WIDE = Geometry(
    name="wide", layers=6, hidden_size=48, intermediate_size=64, heads=4, kv_heads=2, head_dim=16, vocabulary=400,
    draft_vocabulary=390,
)  # fmt: skip
METHODS = {"eagle3": {"calls": 3}, "threshold": {"mass": 0.3}, "radar": {"network": "policy"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pair that says few ids, prompts of the four tasks, and methods."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    model = tiny_target(vocab_size=VOCAB, max_position_embeddings=2048, eos_token_id=3)
    draft = tiny_draft(vocab_size=VOCAB, draft_vocab_size=VOCAB)
    for layer in (model.lm_head, draft.lm_head):
        layer.weight.data[:4] = layer.weight.data[LIVE:] = 0  # their logits are 0: among 13 others one is above
    model.save_pretrained(folder / "target")
    save_draft(draft, folder / "head", dtype=torch.float32)
    words = [f"{a}{b} {a * 2}{b * 3}" for a in "abcdefgh" for b in "ijklmnop"]
    save_tokenizer(train_tokenizer(iter(words), VOCAB), folder / "target")
    for task in TASKS:
        rows = [{"turns": [f"{task} question {n}", "another turn"]} for n in range(3)]
        (folder / f"q_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_policy(PolicyNetwork(), folder / "policy")
    (folder / "methods.json").write_text(json.dumps({"llama": {"0": METHODS, "1": METHODS}}))
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """`run(*words)` is the command; it returns its status and all lines so far."""
    monkeypatch.setitem(released.SHAPES, "llama", WIDE)
    out = tmp_path / "runs.jsonl"

    def call(*words):
        paths = {"model": "target", "draft": "head", "prompts": ".", "methods": "methods.json"}
        given = [f"--{name}={folder / path}" for name, path in paths.items()]
        given += ["--shape=llama", f"--out={out}", f"--new-tokens={TOKENS}", *words]
        return released.main(given), read_runs(out)

    return call


def test_every_method_decodes_every_prompt(run, tmp_path):
    save = tmp_path / "wide"
    status, (about, *lines) = run("--limit", "1", "--rows", "2", "--save", str(save))
    assert (status, about["pair"]) == (0, "llama")
    assert "hardware" in about["about"]
    alone, together = ([one for one in lines if ("prompt" in one) is single] for single in (True, False))
    assert len(alone) == len({key_of(one) for one in alone}) == len(TASKS) * 2 * (1 + len(METHODS))
    texts = {}
    for one in alone:
        texts.setdefault((one["task"], one["temperature"]), set()).add(one["text"])
        assert one["drafted"] <= 59 * one["rounds"]
        assert one["method"] != "eagle3" or one["calls"] == 3 * one["rounds"]
    assert all(len(found) == 1 for found in texts.values()) or DEVICE.type == "cuda"  # whatever the method
    assert [(one["method"], one["rows"]) for one in together] == [
        (name, 2) for _ in range(released.TURNS) for name in (AUTOREGRESSIVE, *released.BATCHED)
    ]
    assert [one["turn"] for one in together[:: 1 + len(released.BATCHED)]] == list(range(released.TURNS))
    greedy = [one["text"] for one in alone if (one["method"], one["temperature"]) == (AUTOREGRESSIVE, 0)]
    assert all(one["texts"] == greedy for one in together) or DEVICE.type == "cuda"
    assert [one for one in run("--limit", "1", "--rows", "2")[1] if "turn" in one] == together, "turns are not repeated"
    assert [task for task, _ in json.loads((save / "prompts.json").read_text())] == list(TASKS)
    assert (save / "target" / "config.json").is_file()


def test_it_goes_on_where_it_was_and_no_process_counts_its_first_texts(run, monkeypatch):
    alone, asked = released.alone, []

    def watched(methods, names, about, *more):
        asked.append((about["task"], about["prompt"]))
        return alone(methods, names, about, *more)

    monkeypatch.setattr(released, "alone", watched)
    assert run("--temperatures", "0", "--limit", "1", "--rows", "--seconds", "0")[0] == 3
    assert asked == []
    assert run("--temperatures", "0", "--limit", "1", "--rows")[0] == 0
    assert asked == [("mt_bench", 0), *((task, 0) for task in TASKS)]
    asked.clear()
    _, lines = run("--temperatures", "0", "--limit", "2", "--rows")
    assert asked == [("mt_bench", 1), *((task, 1) for task in TASKS)]
    assert set(Counter(key_of(one) for one in lines if "prompt" in one).values()) == {1}


def test_methods_are_read_as_they_are_told(folder):
    made = {
        name: released.policy_of(told, folder)
        for name, told in {
            "fixed": {"calls": 5},
            "capped": {"network": "policy", "sample": True, "cap": 8},
            "nodes": {"mass": 0.4, "nodes": [16, 60], "prices": [0.0, 0.1]},
        }.items()
    }
    assert isinstance(made["fixed"], FixedDepth)
    assert isinstance(made["capped"], Capped)
    assert isinstance(made["nodes"], NodesByMass)
    assert isinstance(made["nodes"].policy, Threshold)
    assert tuple(made["nodes"].nodes) == (16, 60)
