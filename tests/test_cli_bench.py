"""`radar bench` and `radar verify`: what they print, and that a wrong text is found out."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from fakes import tiny_draft, tiny_target

from radar import RadarDecoder, TreeConfig
from radar.cli.main import main
from radar.generation.base import Decoder
from radar.policy.fitted import write_fitted
from radar.tools.compare import Contender, compare
from radar.tools.differences import find_differences
from radar.tools.stock import StockModel
from radar.tools.texts import Text

SHORT = ["--max-new-tokens", "12", "--no-progress", "--device", "cpu"]


@pytest.fixture
def prompts(tmp_path):
    """A conversation of two turns, and a plain text."""
    file = tmp_path / "p.jsonl"
    file.write_text('{"turns": ["Write a function.", "And a test."]}\n{"prompt": "import os\\n"}\n')
    return ["--prompts", str(file)]


@pytest.fixture
def wrong(monkeypatch):
    """RadarDecoder writes a wrong token at position 5."""
    generate = RadarDecoder.generate

    def broken(self, prompt, **options):
        output = generate(self, prompt, **options)
        if isinstance(self, RadarDecoder):
            output.token_ids[5] = (output.token_ids[5] + 1) % 4096
        return output

    monkeypatch.setattr(RadarDecoder, "generate", broken)


def test_bench_prints_tables(prompts, capsys):
    assert main(["bench", *prompts, *SHORT]) == 0
    out = capsys.readouterr().out
    lines = [line.split("  ")[0] for line in out.splitlines()]
    for start in ("decoder", "autoregressive", "EAGLE-3", "RADAR", "time of a round [ms]", "rounds by draft calls"):
        assert start in lines
    assert "3 texts, 12 new tokens at most, 1 repeats" in out
    assert "outputs identical: yes: all 6 texts are the same, token for token" in out


def test_bench_prints_json(prompts, capsys):
    assert main(["bench", *prompts, *SHORT, "--json", "--limit", "1", "--policy", "3"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["identical"], record["differences"]) == (True, [])
    assert [row["name"] for row in record["rows"]] == ["autoregressive", "EAGLE-3", "FixedDepth(3)"]
    assert record["rows"][2]["metrics"]["draft_calls_per_round"] == 3
    assert record["rows"][0]["metrics"]["num_generations"] == record["settings"]["texts"] == 2
    assert {"hardware", "torch", "transformers", "commit"} <= record["machine"].keys()


@pytest.mark.slow
def test_bench_says_where_texts_part(prompts, capsys, wrong):
    assert main(["bench", *prompts, *SHORT]) == 1
    out = capsys.readouterr().out
    assert "outputs identical: no: 6 of 6 texts part, 6 of them where rounding in float32 does not explain it" in out
    assert out.count("NOT a tie") == 6
    assert "1, turn 2" in out
    assert main(["bench", *prompts, *SHORT, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert not record["identical"]
    assert [one["position"] for one in record["differences"]] == [5] * 6


@pytest.mark.parametrize(("slower", "policy"), [(2, []), (1, []), (2, ["--policy", "3"])], ids=str)
def test_bench_says_why_radar_is_behind_on_a_cpu(capsys, monkeypatch, slower, policy):
    """Where the embedded pair's own policy is, and nowhere else."""

    def measured(*args, **options):
        rows, texts = compare(*args, **options)
        metrics = replace(rows[slower].metrics, tokens_per_second=0.1)
        times = {"draft": 8 * metrics.draft_calls_per_round, "policy": 0.0, "verify": 15.0, "accept": 1.0}
        rows[slower] = replace(rows[slower], metrics=metrics, milliseconds_per_round=times)
        return rows, texts

    monkeypatch.setattr("radar.tools.compare.compare", measured)
    assert main(["bench", "--limit", "1", *policy, *SHORT]) == 0
    told = re.findall("RADAR is behind EAGLE-3 here: .* here they cost (.*)", capsys.readouterr().out)
    assert told == (["50 and 0.0 %"] if slower == 2 and not policy else [])


def test_bench_names_what_it_compares(capsys):
    """Fewer calls than EAGLE-3 makes, a policy that is not RADAR's, and texts without a round."""
    arguments = ["bench", "--limit", "1", "--max-new-tokens", "1", "--max-calls", "4", "--policy", "2", *SHORT[2:]]
    assert main(arguments) == 0
    assert "EAGLE-3 as FixedDepth(4), stop policy FixedDepth(2)" in capsys.readouterr().out


def test_eagle_is_compared_in_trees_of_its_own_beams(tmp_path, capsys, monkeypatch):
    """Whatever `radar fit` has kept."""
    assets, trees = Path(str(files("radar"))) / "assets", {}
    (tmp_path / "head").symlink_to(assets / "draft")
    write_fitted(tmp_path, draft="head", policy={"calls": 2}, costs="costs.json", about={}, beams=16)
    run = Contender.run

    def noted(self, *args):
        output = run(self, *args)
        trees[self.name] = getattr(self.decoder, "tree", None), repr(getattr(self.decoder, "policy", None))
        return output

    monkeypatch.setattr(Contender, "run", noted)
    pair = ["--target", str(assets / "target"), "--draft", str(tmp_path), "--dtype", "float32"]
    assert main(["bench", "--limit", "1", "--max-new-tokens", "4", "--max-calls", "4", *pair, *SHORT[2:]]) == 0
    assert "EAGLE-3 as FixedDepth(4) in trees of 10 beams, ours of 16, stop policy" in capsys.readouterr().out
    shape = {"total_tokens": 32, "max_calls": 4}
    assert trees["EAGLE-3"] == (TreeConfig(**shape), "FixedDepth(4)")
    assert trees["FixedDepth(2)"] == (TreeConfig(tree_top_k=16, **shape), "FixedDepth(2)")


def test_verify_compares_with_generate(prompts, capsys):
    assert main(["verify", *prompts, *SHORT]) == 0
    out = capsys.readouterr().out
    assert "3 texts of 2 prompts, 36 tokens in torch.float32, against transformers' generate" in out
    for name in ("without drafts", "with drafts"):
        assert f"{name}: all 3 texts are the same, token for token" in out


def test_verify_finds_a_wrong_text(prompts, capsys, wrong):
    assert main(["verify", *prompts, *SHORT]) == 1
    out = capsys.readouterr().out
    assert out.count("NOT a tie") == 3
    assert "without drafts: all 3 texts are the same" in out
    assert "with drafts: 3 of 3 texts part, 3 of them where rounding" in out


def test_verify_does_not_trust_the_plain_decoder(prompts, capsys, monkeypatch):
    """A fault that plain decoding and drafts have in common."""
    generate = Decoder.generate

    def broken(self, prompt, **options):
        output = generate(self, prompt, **options)
        output.token_ids[5] = (output.token_ids[5] + 1) % 4096
        return output

    monkeypatch.setattr(Decoder, "generate", broken)
    assert main(["verify", *prompts, *SHORT]) == 1
    out = capsys.readouterr().out
    for name in ("without drafts", "with drafts"):
        assert f"{name}: 3 of 3 texts part" in out


def test_texts_too_long_for_the_cache_are_named_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RadarDecoder, "generate", None)
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"turns": ["b", "c", "d"]}) + "\n")
    for command in ("bench", "verify"):
        arguments = [command, "--prompts", str(file), "--max-new-tokens", "40", "--max-length", "100"]
        assert main([*arguments, "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert "prompt 2 with its 3 turns may need" in err
        assert "--max-length" in err


def test_prompts_of_a_target_without_a_template_are_plain_text_and_that_is_said(prompts, capsys, monkeypatch):
    from radar.target import load

    def without_template(path):
        tokenizer = original(path)
        tokenizer.chat_template = None
        return tokenizer

    original = load.load_tokenizer
    monkeypatch.setattr("radar.decoder.load_tokenizer", without_template)
    assert main(["verify", *prompts, *SHORT]) == 0
    out, err = capsys.readouterr()
    assert "note: the tokenizer has no chat template: 1 of 2 prompts are chats, and taken as plain text" in err
    assert "2 texts of 2 prompts" in out


def test_a_wrong_draft_changes_nothing_and_a_wrong_verifier_does():
    """A real decoder whose verification is broken: it takes every draft token at its word."""
    model = tiny_target()
    decoder = RadarDecoder(model, draft=tiny_draft(), max_length=64, fallback=False, engine="eager")
    stock, prompts = StockModel(model), [[1, 2, 3], [4, 5, 6]]

    def differences():
        texts = []
        for index, ids in enumerate(prompts):
            found = decoder.generate(ids, max_new_tokens=24).token_ids
            texts.append(Text(index, 0, ids, {"generate": stock.text(ids, max_new_tokens=24), "ours": found}))
        return find_differences(texts, stock.scores, stock.dtype)

    assert differences() == []
    target = decoder.engine.steps.target
    verify = target.verify

    def wrong(*nodes):
        logits, taps = verify(*nodes)
        return logits.roll(1, dims=-1), taps

    target.verify = wrong
    assert [item.position for item in differences()] == [1, 1]  # the first token comes from the prompt's pass
    assert not any(item.is_tie for item in differences())
