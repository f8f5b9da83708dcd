"""What of the policies may judge: a threshold always, a network if there was enough to learn from and it learnt it."""

import pytest
from cliff_rounds import FREE, make_rounds

from radar import Threshold
from radar.fit.policy import learn
from radar.fit.stages import Stage
from radar.replay.replay import replay


def stage(folder):
    return Stage("policy", folder, {"seconds": 0.0, "share": 60.0, "settled": {}}, lambda: None)


def test_few_rounds_make_a_threshold_alone(tmp_path):
    rounds = make_rounds(200)
    found = learn(stage(tmp_path / "p"), rounds, FREE)
    assert "200 rounds of" in found["why_no_network"]
    assert not (tmp_path / "p").exists()
    best = replay(Threshold(found["mass"]), rounds, FREE).tokens_per_time
    assert best == max(replay(Threshold(i / 50), rounds, FREE).tokens_per_time for i in range(1, 50))


@pytest.mark.parametrize(
    ("collapsed", "why"), [(None, None), ("never stops", "it collapsed: it never stops, whatever the scores")]
)
def test_a_network_that_collapsed_does_not_judge(tmp_path, monkeypatch, collapsed, why):
    def trained(rounds, out, *, costs, progress, seconds):
        assert 50 < seconds <= 60
        return {"collapsed": collapsed, "epochs": 7}

    monkeypatch.setattr("radar.train.policy.FEWEST_ROUNDS", 100)
    monkeypatch.setattr("radar.train.policy.FEWEST_PROMPTS", 2)
    monkeypatch.setattr("radar.fit.policy.train_policy", trained)
    found = learn(stage(tmp_path / "p"), make_rounds(200), FREE)
    assert (found["why_no_network"], found["epochs"]) == (why, 7)
