"""`radar evaluate`: what a policy or tuning has seen does not judge; too little is named before anything is tuned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cliff_rounds import COSTS, WIDTH, make_rounds
from rounds_files import store

from radar.cli.main import main
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.replay.evaluate import HINDSIGHT
from radar.tools.twins import fingerprint, save_prompts_seen
from radar.train.contenders import EAGLE3

Capture = pytest.CaptureFixture[str]
DATA = make_rounds(240)  # thirty prompts


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a table of costs; heads train for an epoch: what they reach is tested elsewhere."""
    import radar.train.contenders as contenders

    tuned = contenders.tuned_contenders
    monkeypatch.setattr(contenders, "tuned_contenders", lambda *parts: tuned(*parts, epochs=1))
    monkeypatch.chdir(tmp_path)
    COSTS.save("costs.json")


def evaluate(*words: object) -> int:
    return main(["evaluate", "--costs", "costs.json", "--any-device", *map(str, words)])


def text(number: int) -> str:
    return f"write a function{number} that{number} returns the{number} sum{number} of all{number} its{number} numbers"


def recording(name: str, texts: list[str]) -> Path:
    """A prompt of the data set for every text."""
    known = {number: fingerprint(one) for number, one in enumerate(texts)}
    return store(Path(name), replace(DATA, prompts=known), range(len(texts)))


def a_policy(seen: list[str] | None) -> None:
    save_policy(PolicyNetwork(WIDTH, 8), "policy")
    if seen is not None:
        save_prompts_seen("policy", {number: fingerprint(one) for number, one in enumerate(seen)})


def test_the_command(capsys: Capture) -> None:
    recording("r", [text(n) for n in range(30)])
    a_policy([text(77)])
    assert evaluate("--rounds", "r", "--policy", "mine=policy", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert {"mine", EAGLE3, HINDSIGHT} <= {row["name"] for row in found["policies"]}
    assert (found["rounds"], found["prompts"]) == (120, 15)
    assert set(found["tuned"]["GammaTune"]) == {"value", "at_edge"}
    assert evaluate("--rounds", "r", "--policy", "mine=policy") == 0
    shown = capsys.readouterr().out
    assert "120 rounds of 15 prompts; costs: any on any" in shown
    assert "\nmine " in shown
    edges = [name for name, one in found["tuned"].items() if one["at_edge"]]
    assert edges
    assert all(name in shown.splitlines()[-1] for name in edges)
    for wrong in ("x", "=policy"):
        assert evaluate("--rounds", "r", "--policy", wrong) == 2
        assert "NAME=PATH" in capsys.readouterr().err


def test_costs_are_of_this_device(capsys: Capture) -> None:
    recording("r", [text(n) for n in range(30)])
    assert main(["evaluate", "--costs", "costs.json", "--rounds", "r"]) == 2
    assert "measured on 'any', " in capsys.readouterr().err


def test_costs_of_other_beams_are_refused(capsys: Capture) -> None:
    recording("r", [text(n) for n in range(30)])
    replace(COSTS, tree_top_k=16).save("costs.json")
    assert evaluate("--rounds", "r") == 2
    assert f"with tree_top_k=16, the tree has {WIDTH}: take the table of its beams" in capsys.readouterr().err


def test_a_policy_is_not_judged_by_what_it_was_trained_on(capsys: Capture) -> None:
    """Prompt 3 in the same words, 5 with one word more; of a policy that does not say, the user is told."""
    recording("r", [text(n) for n in range(30)])
    a_policy([text(40), text(5) + " here", text(3)])
    assert evaluate("--rounds", "r", "--policy", "mine=policy") == 2
    err = capsys.readouterr().err
    assert "of 30 prompts that judge, some or near-twins of them are used up: 2 in the training of mine" in err
    assert "(prompts 3, 5 of --rounds)" in err
    assert evaluate("--rounds", "r", "--policy", "mine=policy", "--leave-out-shared", "--json") == 0
    out, err = capsys.readouterr()
    assert "left out: 3, 5" in err
    assert json.loads(out)["prompts"] == 14
    a_policy(None)
    Path("policy/prompts.safetensors").unlink()
    assert evaluate("--rounds", "r", "--policy", "mine=policy") == 0
    assert "mine does not say what it was trained on" in capsys.readouterr().err


def test_rounds_that_judge_are_not_tuned_on(capsys: Capture) -> None:
    """Neither in the same recording nor among others, recorded again under other numbers."""
    recording("judge", [text(n) for n in range(10)])
    recording("tune", [text(n) for n in range(10, 30)])
    store(Path("mixed"), replace(DATA, prompt=DATA.prompt + 3, prompts={12: fingerprint(text(9))}), range(12, 13))
    for folders, count, numbers in ((["judge"], 10, "0, 1, 2"), (["tune", "mixed"], 1, "9")):
        assert evaluate("--rounds", "judge", "--tune-on", *folders) == 2
        err = capsys.readouterr().err
        assert f"{count} in --tune-on" in err
        assert f"(prompts {numbers}" in err
    assert evaluate("--rounds", "judge", "judge") == 2
    assert "holds the rounds of" in capsys.readouterr().err
    assert evaluate("--rounds", "judge", "--tune-on", "tune") == 0
    assert EAGLE3 in capsys.readouterr().out


def test_too_few_prompts_and_calls_are_named_before_tuning(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("radar.train.contenders.tuned_contenders", None)
    texts = [text(n) for n in range(30)]
    recording("one", texts[:1])
    recording("three", texts[1:4])
    recording("rest", texts[4:20])
    store(Path("flat"), DATA.truncate(1), range(20, 30))
    for words, message in (
        (("three",), "--rounds needs rounds of 4 prompts or more, found 3: two to judge on, one to train on and one"),
        (("one", "--tune-on", "rest"), "--rounds needs rounds of 2 prompts or more, found 1: intervals are by prompt"),
        (("rest", "--tune-on", "one"), "--tune-on needs rounds of 2 prompts or more, found 1: one to train on and one"),
        (("flat",), "--rounds: rounds with max_calls=1 leave nothing to decide: record with more --max-calls"),
        (("rest", "--tune-on", "flat"), "--tune-on: rounds with max_calls=1 leave nothing"),
    ):
        assert evaluate("--rounds", *words) == 2
        assert message in capsys.readouterr().err


def test_four_prompts_are_enough(capsys: Capture) -> None:
    recording("r", [text(n) for n in range(4)])
    for seed in range(3):
        assert evaluate("--rounds", "r", "--seed", seed) == 0
        assert EAGLE3 in capsys.readouterr().out
