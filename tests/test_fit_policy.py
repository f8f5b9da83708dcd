"""What of the policies may judge: a threshold always, a network if there was enough to learn from and it learnt it."""

import pytest
import torch
from cliff_rounds import CALLS, FREE, blind_rounds, make_rounds

from radar import Threshold
from radar.fit.policy import learn
from radar.fit.stages import Stage
from radar.train.replay import replay


def stage(folder):
    return Stage("policy", folder, {"seconds": 0.0, "share": 60.0, "settled": {}}, lambda: None)


def test_few_rounds_make_a_threshold_alone(tmp_path):
    rounds = make_rounds(200)
    found = learn(stage(tmp_path / "p"), rounds, FREE)
    assert "200 rounds of" in found["why_no_network"]
    assert not (tmp_path / "p").exists()
    best = replay(Threshold(found["mass"]), rounds, FREE).tokens_per_time
    assert best == max(replay(Threshold(i / 50), rounds, FREE).tokens_per_time for i in range(1, 50))


ALL_ACCEPTED = blind_rounds(torch.arange(1, CALLS + 1).expand(200, CALLS))


@pytest.mark.parametrize(
    ("rounds", "why"),
    [(make_rounds(300), None), (ALL_ACCEPTED, "it collapsed: it never stops, whatever the scores")],
    ids=["learnt", "collapsed"],
)
def test_a_network_that_collapsed_does_not_judge(tmp_path, monkeypatch, rounds, why):
    monkeypatch.setattr("radar.train.policy.FEWEST_ROUNDS", 100)
    monkeypatch.setattr("radar.train.policy.FEWEST_PROMPTS", 2)
    found = learn(stage(tmp_path / "p"), rounds, FREE)
    assert (found["why_no_network"], found["epochs"] > 0) == (why, True)
    assert (tmp_path / "p" / "policy.safetensors").is_file()
