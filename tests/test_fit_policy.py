"""What of the policies may judge: a threshold of each width, a network of one if there was enough to learn from and it
learnt it."""

import pytest
import torch
from cliff_rounds import FREE, WIDTH, make_rounds, of_beams

from radar import Threshold
from radar.fit.policy import learn, network_beams, rules_of
from radar.fit.stages import Stage
from radar.fit.widths import Width, alike
from radar.replay.replay import replay


def stage(folder):
    return Stage("policy", folder, {"seconds": 0.0, "share": 60.0, "settled": {}}, lambda: None)


def test_few_rounds_make_a_threshold_alone(tmp_path):
    rounds = make_rounds(200)
    found = learn(stage(tmp_path / "p"), [Width(rounds, FREE)])
    assert "200 rounds of" in found["why_no_network"]
    assert not (tmp_path / "p").exists()
    assert network_beams(found) is None
    best = replay(Threshold(rules_of(found)[WIDTH]["mass"]), rounds, FREE).tokens_per_time
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
    found = learn(stage(tmp_path / "p"), [Width(make_rounds(200), FREE)])
    assert (found["why_no_network"], found["epochs"]) == (why, 7)


@pytest.mark.parametrize(("call", "lucky", "best"), [(0.2, 0, 16), (0.4, 0, 10), (0.31, 16, 10)])
def test_the_network_is_of_10_beams_unless_16_are_ahead_by_more_than_chance(call, lucky, best, tmp_path, monkeypatch):
    """By the prompts that both have: those that the wider one lacks are the fastest there are, and do not count."""
    seen, many = [], make_rounds(200)
    many.accept_lengths[100:] = torch.arange(1, 9)
    wide = many.select(torch.arange(200) < 104)
    wide.accept_lengths[:lucky] = torch.arange(1, 9)

    def trained(rounds, out, *, costs, progress, seconds):
        seen.append((rounds.header.tree.tree_top_k, len(rounds), costs.draft_call_seconds[0]))
        return {"collapsed": None, "epochs": 7}

    monkeypatch.setattr("radar.train.policy.FEWEST_ROUNDS", 100)
    monkeypatch.setattr("radar.train.policy.FEWEST_PROMPTS", 2)
    monkeypatch.setattr("radar.fit.policy.train_policy", trained)
    widths = [of_beams(10, many, call=0.3), of_beams(16, wide, call=call)]
    found = learn(stage(tmp_path / "p"), widths)
    assert seen == [{10: (10, 200, 0.3), 16: (16, 104, call)}[best]]
    assert network_beams(found) == best
    assert (found["prompts"], found["network_prompts"]) == (13, 25 if best == 10 else 13)
    rules = rules_of(found)
    assert list(rules) == [10, 16]
    assert [len(one.rounds) for one in alike(widths)] == [104, 104]
    reached = []
    for one in alike(widths):
        speeds = [replay(Threshold(mass), one.rounds, one.costs).tokens_per_time for mass in (0.02, 0.5, 0.98)]
        reached.append(replay(Threshold(rules[one.beams]["mass"]), one.rounds, one.costs).tokens_per_time)
        assert reached[-1] >= max(speeds)
    assert (reached[1] > reached[0]) == (best == 16 or lucky > 0)


def test_what_a_fit_of_before_has_learnt_is_of_the_beams_of_eagle():
    before = {"mass": 0.3, "why_no_network": None, "epochs": 3}
    assert rules_of(before)[10]["mass"] == 0.3
    assert network_beams(before) == 10
