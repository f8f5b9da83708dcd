"""`radar train-policy`: what would mislead is refused or said loudly, and the status tells a script."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cliff_rounds import COSTS, make_rounds
from rounds_files import store

from radar.cli.decoders import default_prompts
from radar.cli.main import main
from radar.tools.prompts import load_prompts
from radar.tools.twins import fingerprint

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    COSTS.save(tmp_path / "costs.json")
    return tmp_path / "costs.json"


def train(folder: Path, rounds: Path, costs: Path, *words: object) -> int:
    given = ["--rounds", rounds, "--out", folder / "policy", "--costs", costs, "--any-device", "--no-progress"]
    return main(["train-policy", *map(str, given), *map(str, words)])


FAST = ("--epochs", 6, "--batch-size", 64, "--learning-rate", 0.01)


def test_the_defaults_train_for_throughput(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    rounds = store(tmp_path / "r", make_rounds(1000), range(125))
    assert train(tmp_path, rounds, costs, *FAST, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["collapsed"], result["too_few"]) == (None, None)
    assert result["tokens_per_time_change"] > 0.1
    settings = json.loads((tmp_path / "policy" / "config.json").read_text())["training"]
    assert (settings["objective"], settings["estimator"], settings["entropy"]) == ("ratio", "exact", 0.1)
    assert train(tmp_path, rounds, costs, *FAST) == 0
    shown = capsys.readouterr().out
    assert f"{result['tokens_per_time']:.4g}" in shown
    assert "tokens/s by the cost table" in shown
    assert "EAGLE-3, 8 calls" in shown


def test_too_few_rounds_are_refused_unless_forced(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    rounds = store(tmp_path / "r", make_rounds(116, per_prompt=6), range(20))
    assert train(tmp_path, rounds, costs, *FAST) == 2
    assert "116 rounds of 20 prompts are too few to learn from" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()
    assert train(tmp_path, rounds, costs, *FAST, "--force") == 0
    assert "116 rounds of 20 prompts are too few" in capsys.readouterr().err


def test_costs_of_other_beams_are_refused(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    rounds = store(tmp_path / "r", make_rounds(1000), range(125))
    replace(COSTS, tree_top_k=16).save(costs)
    assert train(tmp_path, rounds, costs, *FAST) == 2
    assert "with tree_top_k=16, the tree has 4: take the table of its beams" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()


def test_a_collapsed_policy_is_a_failure_unless_forced(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    """The paper's reward with a small alpha: from an undecided start drafting on looks better everywhere."""
    rounds = store(tmp_path / "r", make_rounds(1000), range(125))
    words = ("--objective", "paper", "--beta", 3, *FAST)
    assert train(tmp_path, rounds, costs, *words) == 1
    assert "THE POLICY COLLAPSED: it never stops, whatever the scores" in capsys.readouterr().err
    assert train(tmp_path, rounds, costs, *words, "--force") == 0
    assert "THE POLICY COLLAPSED: it never stops" in capsys.readouterr().err


def test_prompts_that_measure_are_found_by_what_they_say(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    """A near-twin too: one word more is another string and the same question."""
    data = make_rounds(1000)
    line = load_prompts(default_prompts())[0].text + " more"
    known = {n: fingerprint(f"a{n} b{n} c{n} d{n}") for n in range(125)} | {17: fingerprint(line)}
    rounds = store(tmp_path / "r", replace(data, prompts=known), range(125))
    assert train(tmp_path, rounds, costs, *FAST) == 2
    assert "1 of 125 prompts are, or nearly are, those that `radar bench` measures with" in capsys.readouterr().err
    assert train(tmp_path, rounds, costs, *FAST, "--force") == 0


def test_an_option_of_the_papers_reward_is_not_ignored(tmp_path: Path, costs: Path, capsys: Capture) -> None:
    rounds = store(tmp_path / "r", make_rounds(1000), range(125))
    assert train(tmp_path, rounds, costs, *FAST, "--alpha", 0.05) == 2
    assert "alpha belong to the paper's reward, and the objective is" in capsys.readouterr().err
