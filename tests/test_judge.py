"""The loop that fits, tunes and judges policies by replay, on made-up rounds."""

import json
import math

import pytest
import torch
from laboratory import fill_work

from bench import tables
from bench.lab import configurations, judge
from bench.lab.policies import PUBLISHED, RADAR, Choice, choose_policies
from bench.lab.sets import TASKS
from radar import FixedDepth
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.tools.costs import CostTable


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Of one pair, with networks that nobody trained."""
    work = fill_work(tmp_path_factory.mktemp("lab")) / "work"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.lab.fit._train", lambda _, __, out, *___: save_policy(PolicyNetwork(), out))
        costs = CostTable.load(work / "llama" / "costs.json", device=None)
        choose_policies(work / "llama" / "rounds", costs, work / "llama" / "T0", temperature=0.0, epochs=1)
    return work


@pytest.mark.parametrize(
    ("name", "labels", "policy"),
    [
        ("rules", ["0"], "SpecDec++ head"),
        ("transfer", ["0, policies of llama"], "beam-mass threshold"),
        ("prices", [f"0, draft calls {n} times as dear" for n in (1, 2, 4, 8)], "RADAR trained for it"),
        ("alphas", ["0, at most 16 calls", "0, at most 8 calls"], "ratio objective"),
    ],
)
@pytest.mark.filterwarnings("ignore:train_policy")
def test_every_configuration_is_judged_on_every_task(work, tmp_path, monkeypatch, name, labels, policy):
    monkeypatch.setattr(configurations, "ALPHAS", (0.1,))
    out = tmp_path / f"{name}.json"
    words = [name, "--work", str(work), "--out", str(out), "--temperatures", "0", "--epochs", "1"]
    assert judge.main(words) == 0
    found = json.loads(out.read_text())
    assert list(found["overall"]) == list(found["pairs"]["llama"]) == labels
    for label in labels:
        tasks = found["pairs"]["llama"][label]["tasks"]
        assert tasks.keys() == set(TASKS)
        ratios = [row["ratio"] for rows in tasks.values() for row in rows if row["name"] == policy]
        assert len(ratios) == len(TASKS)
        assert found["overall"][label][policy]["over_eagle3"] == pytest.approx(math.prod(ratios) ** 0.25)
        assert found["overall"][label]["EAGLE-3 (8 calls)"]["over_eagle3"] == pytest.approx(1.0)
        assert found["overall"][label]["EAGLE-3 (8 calls)"]["draft_calls"] == 8.0
    shown = [line.split(" | ") for line in tables.rules(found).splitlines() if line.startswith("| ")][2:]
    first = [float(line[1]) for line in shown[: len(found["overall"][labels[0]])]]
    assert first == sorted(first, reverse=True)  # the fastest comes first
    assert str(work) not in found["command"]


def test_dearer_calls_pay_less_and_fewer_calls_are_fewer(work):
    pair = configurations.load_pair(work / "llama", 0.0)
    asked = [configurations.Asked("", one, {"deep": FixedDepth(16)}) for one in (pair, pair.dearer(4))]
    ratios = [{row["name"]: row["ratio"] for row in judge.judge(one)["mbpp"]}["deep"] for one in asked]
    assert ratios[1] < ratios[0]  # of sixteen calls to eight
    short = pair.shallower(8)
    assert {one.header.tree.max_calls for one in (short.train, *short.tasks.values())} == {8}


def test_a_pair_without_its_stages_is_said(tmp_path):
    with pytest.raises(ValueError, match="no pair under"):
        judge.main(["rules", "--work", str(tmp_path), "--out", str(tmp_path / "x.json")])


def test_a_choice_is_read_as_it_was_written(work):
    choice = Choice.load(work / "llama" / "T0" / "choice.json")
    assert set(choice.collapsed) >= {RADAR, f"{PUBLISHED}-{choice.alpha}"}
    assert all(isinstance(one, tuple) for one in choice.fixed.values())
