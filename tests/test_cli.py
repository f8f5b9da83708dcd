"""The commands together: what each makes of models and files, and a whole training pipeline on the embedded pair."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import radar
from radar import RadarDecoder
from radar.cli.main import main

CPU = ["--device", "cpu"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


ASSETS = Path(radar.__file__).parent / "assets"
DRAFT = str(ASSETS / "draft")
SHORT = ["--limit", 1, "--max-new-tokens", 2, "--no-progress", *CPU]
PROMPTS = ["--prompts", ASSETS / "prompts.jsonl"]


@pytest.mark.parametrize(
    ("command", "may_fall_back"),
    [
        (["generate", "def add(a, b):", "--max-new-tokens", 2, *CPU], True),
        (["bench", *SHORT], False),
        (["record", *PROMPTS, "--out", "rounds", *SHORT], False),
        (["profile", "--prefix", 9, "--nodes", 8, 12, "--total-tokens", 12, "--calls", 1, "--repeats", 1, *CPU], False),
        (["verify", *SHORT], False),
        (["doctor", ASSETS / "target", ASSETS / "draft", *SHORT], False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_measures_or_records_drafts_in_every_round(command, may_fall_back, capsys, monkeypatch, tmp_path):
    made = []
    init = RadarDecoder.__init__

    def noted(self, *args, **options):
        init(self, *args, **options)
        made.append(self.engine.fallback is not None)

    monkeypatch.setattr(RadarDecoder, "__init__", noted)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *command)
    assert code == 0, err
    assert set(made) == {may_fall_back}
    assert len(made) == {"profile": 2}.get(command[0], len(made))


@pytest.mark.slow
def test_record_and_train_a_policy_and_use_it(capsys, tmp_path):
    prompts, rounds, policy, every = (tmp_path / name for name in ("p.jsonl", "rounds", "policy", "every"))
    words = ("file", "list", "word", "sum", "key", "date")
    prompts.write_text("".join(json.dumps({"prompt": f"def {w}(a): # the {w} of {w} is\n"}) + "\n" for w in words))
    record = ("record", "--prompts", prompts, "--out", rounds, "--max-new-tokens", 40, "--no-progress", *CPU)
    code, out, err = run(capsys, *record)
    assert code == 0, err
    assert out.splitlines()[4].split()[:3] == ["prompts", "6", "6"]
    code, out, _ = run(capsys, *record, "--json")  # once more: nothing left to do
    found = json.loads(out)
    assert (found["prompts"], found["new_prompts"], found["new_rounds"]) == (6, 0, 0)
    assert found["rounds"] > 6
    costs = ("--costs", "paper-3090")
    train = ("train-policy", "--rounds", rounds, "--out", policy, "--epochs", 2, "--no-progress", "--force", *costs)
    code, out, _ = run(capsys, *train)
    assert code == 0
    assert "draft calls [per round]" in out
    code, _, _ = run(capsys, "generate", "def add(a, b):", "--policy", policy, "--max-new-tokens", 8, *CPU)
    assert code == 0
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "import os\\n\\n\\ndef find(path):"}\n{"prompt": "class Node:\\n    def __init__"}\n')
    code, out, err = run(capsys, "record", "--prompts", other, "--out", every, *record[5:], "--every-token", "--json")
    assert code == 0, err
    assert 2 * 20 <= json.loads(out)["new_rounds"] <= 2 * 39
    judge = ("evaluate", "--rounds", every, "--tune-on", rounds, *costs)
    code, out, err = run(capsys, *judge, "--policy", f"mine={policy}")
    assert code == 0, err
    assert "mine" in out
    code, _, err = run(capsys, *judge[:3], *costs, "--policy", f"mine={policy}", "--rounds", rounds)
    assert code == 2
    assert "6 in the training of mine" in err


def test_train_a_draft_head_and_use_it(capsys, tmp_path):
    assets = ASSETS / "target"
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n\n\n\n" * 300)
    head = tmp_path / "head"
    code, out, _ = run(
        capsys, "train-draft", "--target", assets, "--text", text, "--out", head, "--steps", 3, "--batch-size", 2,
        "--length", 32, "--intermediate-size", 64, "--draft-vocab-size", 512, "--no-progress", *CPU,
    )  # fmt: skip
    assert code == 0
    assert f"{head}: 3 steps in" in out
    code, _, _ = run(
        capsys,
        "generate",
        "def add(a, b):",
        "--target",
        assets,
        "--draft",
        head,
        "--policy",
        4,
        "--max-new-tokens",
        8,
        *CPU,
    )
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--draft", "nowhere"], "pass target="),
        (["generate", "x", "--policy", "nowhere"], "nowhere"),
        (["generate", "x", "--policy", "0"], "positive integer"),
        (["generate", "x", "--total-tokens", "1000"], "total_tokens must be"),
        (["generate", "x", "--total-tokens", "0"], "total_tokens must be"),
        (["generate", "x", "--max-calls", "0"], "max_calls must be"),
        (["generate", "x", "--target", "/nowhere", "--draft", DRAFT], "no transformers model at '/nowhere'"),
        (["generate", "x", "--target", str(ASSETS / "draft"), "--draft", DRAFT], "no transformers model at"),
        (["generate", "x", "--target", "/nowhere", "--draft", "d"], "no draft head in d"),
        (["bench", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["bench", "--prompts", "/"], "directory"),
        (["generate", "x", "--device", "cuda:99"], "no device 'cuda:99' here: take one of cpu"),
        (["generate", "x", "--device", "foo"], "no device 'foo' here"),
        (
            ["train-policy", "--rounds", "nowhere", "--out", "o"],
            "--costs is needed: measure a table",
        ),
        (
            ["train-policy", "--rounds", "nowhere", "--out", "o", "--costs", "paper-3090"],
            "no recorded rounds in",
        ),
        (["evaluate", "--rounds", "old.jsonl", "--costs", "paper-3090"], "old.jsonl: recorded rounds are a folder"),
        (["evaluate", "--rounds", "r"], "or name the paper's cards with --costs paper-3090"),
        (["train-policy", "--rounds", "r", "--out", "o", "--call-time", "1"], "--decision-time"),
        (["train-draft", "--target", "t", "--text", "nowhere.txt", "--out", "o"], "nowhere.txt"),
    ],
)
def test_mistakes_end_with_one_line(arguments, message, capsys):
    on_cpu = CPU if arguments[0] in ("generate", "bench") and "--device" not in arguments else []
    code, _, err = run(capsys, *arguments, *on_cpu)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"radar {arguments[0]}: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_target_that_cannot_be_read_is_named(broken, capsys, tmp_path):
    """Cut off in the middle, as by a full disk or a copy that was interrupted."""
    target = tmp_path / "target"
    shutil.copytree(ASSETS / "target", target)
    (target / broken).write_bytes((target / broken).read_bytes()[: (target / broken).stat().st_size // 2])
    code, _, err = run(capsys, "generate", "x", "--target", target, "--draft", ASSETS / "draft", *CPU)
    assert code == 2
    assert str(target) in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["bench", "--repeats", "0"], ["bench", "--limit", "-1"], ["verify", "--limit", "0"]]
)
def test_numbers_of_things_are_one_or_more(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, *arguments)
    assert f"must be an integer of 1 or more, got '{arguments[-1]}'" in capsys.readouterr().err


def test_profile_writes_a_cost_table_that_training_takes(capsys, tmp_path):
    from radar.config import TreeConfig
    from radar.decoder import default_device
    from radar.tools.costs import CostTable
    from radar.tools.machine import device_name

    costs, trace = tmp_path / "costs.json", tmp_path / "trace.json"
    code, out, _ = run(
        capsys, "profile", "--prefix", 60, 30, "--nodes", 8, 24, "--total-tokens", 24, "--max-calls", 4, "--calls", 3,
        "--repeats", 2, "--max-length", 128, "--costs", costs, "--trace", trace,
    )  # fmt: skip
    assert code == 0
    assert out.count("the whole round") == 4
    table = CostTable.load(costs, device=device_name(default_device()))
    assert (table.nodes, table.contexts, len(table.draft_call_seconds)) == ((8, 24), (30, 60), 4)
    times = table.times(TreeConfig(total_tokens=24, max_calls=4), torch.tensor([30]))
    assert (times > 0).all()
    assert (times.diff() > 0).all()  # another call costs something
    assert json.loads(trace.read_text())["traceEvents"]
