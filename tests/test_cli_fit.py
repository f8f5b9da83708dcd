"""`radar fit`: from the embedded target and forty prompts to what decodes its text, interrupted and gone on with."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from live_server import plain_decoder
from small_heads import contents, interrupt_at
from transformers import GPT2Config, GPT2LMHeadModel

from radar.cli.main import main
from radar.config import TreeConfig
from radar.decoder import RadarDecoder
from radar.errors import UsageError
from radar.fit.split import split
from radar.policy.fitted import read_fitted
from radar.replay.recording import read_rounds
from radar.tools.prompts import load_prompts
from radar.tools.twins import fingerprint

TARGET = Path(__file__).parent.parent / "radar" / "assets" / "target"
VERBS = ("add", "sort", "find", "count", "merge", "reverse", "split", "join")
NOUNS = "list number string file line word value item key pair tree node edge path cost time"


def write_prompts(file: Path, count: int = 40, *, chat: bool = True) -> Path:
    """No two alike; every other one is a chat, and some of these have a second turn."""
    lines, nouns = [], NOUNS.split()
    for i in range(count):
        verb, one, two, three = VERBS[i % 8], nouns[i % 16], nouns[i * 7 % 15], nouns[(i * 5 + i // 16) % 16]
        text = f"Please {verb} the {one} of {i} and a {two}, or the {three} number {i * i}?"
        turns = [text, "And then?"] if i % 4 == 0 else [text]
        lines.append({"turns": turns} if chat and i % 2 == 0 else {"prompt": text})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    given = f"fit {TARGET} --prompts {prompts} --out {tmp_path}/fit --minutes 0.15 --device cpu --dtype float32"
    return [*given.split(), "--no-progress"]


def test_from_a_model_to_a_faster_one(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fit"
    for place in ("radar.engine.build", "radar.fit.parts"):
        monkeypatch.setattr(f"{place}.default_tree", lambda device: TreeConfig(total_tokens=12, max_calls=8))
    monkeypatch.setattr("radar.train.policy.FEWEST_ROUNDS", 4)  # so few would make no policy
    monkeypatch.setattr("radar.train.policy.FEWEST_PROMPTS", 2)
    with monkeypatch.context() as patch:
        interrupt_at(0, patch)  # the only step that there is on every machine
        assert main(words) == 130
    err = capsys.readouterr().err
    for said in ("40 prompts: ", "time    0:09", "GB beside the model", "GB in ", "the same command goes on"):
        assert said in err
    texts = {path: path.read_bytes() for path in (out / "text").rglob("*.*")}
    assert len(texts) > 1
    with pytest.raises(UsageError, match="has not ended"):
        read_fitted(out)

    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "text   done before" in captured.err
    assert texts == {path: path.read_bytes() for path in (out / "text").rglob("*.*")}
    head = json.loads((out / "head" / "training.json").read_text())["result"]
    assert result["kept"] in (report := (out / "report.md").read_text())
    assert f"{head['steps']} steps on" in report
    learned = json.loads((out / "stages" / "policy.json").read_text())["result"]
    assert f"tuned on rounds of {learned['prompts']} other prompts. " in report
    assert (out / "show.html").stat().st_size > 10_000
    assert (out / "policy" / "policy.safetensors").is_file()
    speeds = json.loads((out / "stages" / "judge.json").read_text())["result"]["speeds"]
    rules = [name for name in speeds if "beams" not in name and name != "RADAR"]
    assert result["kept"] not in rules or result["kept"] == max(rules, key=lambda name: speeds[name])
    assert any("16 beams" in name for name in speeds)
    parts = split(load_prompts(tmp_path / "prompts.jsonl"))
    written = "".join(path.read_text() for path in (out / "text").rglob("*.jsonl"))
    assert any(line.text in written for line in parts.text)
    assert not any(line.text in written for line in (*parts.rounds, *parts.judge))
    for name, lines in (("judge", parts.judge), ("policy", parts.rounds)):
        prompts = read_rounds(out / "rounds" / name).prompts
        assert all(torch.equal(found, fingerprint(lines[number].text)) for number, found in prompts.items())
        wide = read_rounds(out / "rounds" / f"{name}-16")
        assert (wide.header.tree.tree_top_k, wide.prompts.keys()) == (16, prompts.keys())

    fitted = read_fitted(out)
    assert fitted is not None
    decoder = RadarDecoder.from_pretrained(TARGET, out, device="cpu", dtype=torch.float32, fallback=False)
    assert repr(decoder.policy) == repr(fitted.policy)
    assert decoder.tree.tree_top_k == fitted.beams == (16 if "16 beams" in result["kept"] else 10)
    assert fitted.costs.name == ("costs-16.json" if fitted.beams == 16 else "costs.json")
    ours = decoder.generate("def add(a, b):", max_new_tokens=12)
    assert ours.token_ids == plain_decoder().generate("def add(a, b):", max_new_tokens=12).token_ids
    assert ours.metrics.num_draft_calls > 0

    before = contents(out / "stages")
    assert main(words) == 0
    assert contents(out / "stages") == before, "nothing is done twice"
    write_prompts(tmp_path / "prompts.jsonl", 41)
    assert main(words) == 2
    assert "of another model, machine or file of prompts (prompts" in capsys.readouterr().err


def test_what_cannot_work_is_refused_before_anything_is_made(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, **changed: str) -> None:
        given = [changed.get(before.lstrip("-"), word) for before, word in zip(["", *words], words, strict=False)]
        assert main([changed.get("model", word) if word == str(TARGET) else word for word in given]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "fit").exists()

    few = write_prompts(tmp_path / "few.jsonl", 39)
    refused("39 prompts are too little to go by: 40 are the least", prompts=str(few))
    refused("(--minutes) must be above 0, got 0.0", minutes="0")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "0")
        refused("a fit is one process, and 2 were launched")
    other = tmp_path / "other"
    GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_embd=8, n_head=2, n_layer=1)).save_pretrained(other)
    for file in TARGET.glob("tokenizer*"):
        shutil.copy(file, other)
    refused("unsupported target architecture 'gpt2'", model=str(other))
    monkeypatch.setattr("radar.fit.needs.shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    refused("(--out) has 0.00 GB free, and about 0.0")
    monkeypatch.setattr("radar.fit.fit.has_chat_template", lambda tokenizer: False)
    refused("20 of 40 prompts are chats, and the tokenizer of")
