"""Trees of 10 and of 16 beams in a fit: what is recorded and timed of each, and which of them is kept."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from cliff_rounds import make_rounds, of_beams
from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.fit import costs, fit, judge, rounds
from radar.fit.report import _why_kept
from radar.fit.stages import Stage
from radar.fit.widths import alike
from radar.replay.evaluate import Outcome, is_ahead
from radar.replay.replay import replay
from radar.tools.profile import RoundProfile
from radar.tools.prompts import PromptLine

PROMPTS = 20


def entry(name, beams, tokens, *, network=False):
    """One that makes so many tokens of each prompt in a second."""
    outcome = Outcome(torch.arange(PROMPTS), torch.tensor(tokens).double(), torch.ones(PROMPTS).double())
    return judge.Entry(name, {}, FixedDepth(8), SimpleNamespace(beams=beams), outcome, network)


SLOW, BASE, SURE = [0.9] * PROMPTS, [1.0] * PROMPTS, [1.05] * PROMPTS
FAST = [1.3] * PROMPTS
CHANCE, NOISY = [1.6, 0.7] * (PROMPTS // 2), [1.15, 0.91] * (PROMPTS // 2)  # 1.15 and 1.03 at the mean


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ({"eagle": (10, SLOW), "rule": (10, BASE)}, "rule"),
        ({"eagle": (10, BASE), "rule": (10, SLOW)}, "eagle"),
        ({"rule": (10, BASE), "network": (10, SURE)}, "network"),
        ({"rule": (10, BASE), "network": (10, CHANCE)}, "rule"),
        ({"rule": (10, BASE), "rule 16": (16, SURE)}, "rule 16"),
        ({"rule": (10, BASE), "rule 16": (16, CHANCE)}, "rule"),
        ({"rule": (10, BASE), "rule 16": (16, SLOW), "network 16": (16, SURE)}, "network 16"),
        ({"rule": (10, SLOW), "rule 16": (16, BASE), "network 16": (16, CHANCE)}, "rule 16"),
        ({"rule": (10, BASE), "network": (10, [1.1] * PROMPTS), "rule 16": (16, SURE)}, "network"),
        ({"rule": (10, BASE), "rule 16": (16, NOISY), "network 16": (16, SURE)}, "network 16"),
        ({"rule": (10, BASE), "eagle": (10, SURE), "slow 16": (16, CHANCE), "rule 16": (16, FAST)}, "rule 16"),
    ],
)
def test_16_beams_and_a_network_are_kept_where_they_are_ahead_by_more_than_chance(entries, kept):
    made = [entry(name, beams, tokens, network="network" in name) for name, (beams, tokens) in entries.items()]
    found = judge._kept(made)
    assert found.name == kept
    assert not any(is_ahead(one.outcome, found.outcome) for one in made), "what the report says of the fastest"


def test_the_report_says_by_how_much_the_fastest_is_ahead_of_what_is_kept():
    assert _why_kept({"kept": "a"}) == _why_kept({"kept": "a", "fastest": "a"}) == "The fastest is kept"
    assert _why_kept({"kept": "a", "fastest": "b"}).endswith("by no more than chance"), "of before"
    said = _why_kept({"kept": "a", "fastest": "b", "over_kept": [1.02, 0.99, 1.05]})
    assert said.startswith("a is kept, which b is ahead of by no more than chance (1.020 times its speed, 0.990 to")


class Fake:
    """A decoder that notes what it decodes with."""

    def __init__(self, noted, beams):
        self.noted, self.beams, self.policy = noted, beams, None

    def generate(self, prompt, *, max_new_tokens, do_sample):
        self.noted.append((self.beams, repr(self.policy)))
        return SimpleNamespace(token_ids=[1], metrics=self.beams)


@pytest.mark.parametrize(("call", "lucky", "kept"), [(0.2, 0, 16), (0.4, 0, 10), (0.31, 16, 10)])
def test_the_judge_compares_both_widths_and_decodes_in_trees_of_those_beams(call, lucky, kept, monkeypatch, tmp_path):
    """By the prompts that both have."""
    noted, rounds = [], make_rounds(200)
    wide = rounds.select(rounds.prompt < 15)
    wide.accept_lengths[:lucky] = torch.arange(1, 9)  # ahead, by chance
    widths = [of_beams(10, rounds, call=0.3), of_beams(16, wide, call=call)]
    rules = [{"beams": beams, "mass": mass, "nodes_by_mass": None} for beams, mass in ((10, 0.3), (16, 0.31))]
    learned = {"rules": rules, "beams": 16, "why_no_network": "none", "epochs": 0}
    parts = SimpleNamespace(
        tokenizer=None,
        split=SimpleNamespace(judge=lines("judge")),
        plain=lambda: Fake(noted, 1),
        drafting=lambda head, *, beams: Fake(noted, beams),
    )
    figures = {"num_tokens": 9, "mean_acceptance_length": 2.0, "draft_calls_per_round": 3.0}
    monkeypatch.setattr(judge, "encode_prompt", lambda line, tokenizer: [1])
    monkeypatch.setattr(judge, "merge", lambda many: SimpleNamespace(tokens_per_second=many[0], **figures))
    stage = SimpleNamespace(left=lambda: 0.0, aside=nullcontext)
    result = judge.judge(parts, stage, tmp_path, learned, widths, max_new_tokens=20)
    name = "tuned threshold" + (", 16 beams" if kept == 16 else "")
    fastest = "tuned threshold, 16 beams" if lucky else name
    assert (result["kept"], result["fastest"], result["beams"], result["speed_up"]) == (name, fastest, kept, kept)
    assert result["policy"] == {"mass": 0.31 if kept == 16 else 0.3}
    speeds = result["speeds"]
    assert list(speeds) == ["EAGLE-3 (8 calls)", "tuned threshold", "tuned threshold, 16 beams"]
    over, low, high = result["over_kept"]
    assert over == pytest.approx(speeds[fastest] / speeds[name])
    assert (low < 1 < over < high) if lucky else (low == high == 1)
    same = [replay(FixedDepth(8), one.rounds, one.costs).tokens_per_time for one in alike(widths)]
    assert speeds["EAGLE-3 (8 calls)"] == pytest.approx(same[0])
    assert result["ratio"] == pytest.approx(speeds[name] / speeds["EAGLE-3 (8 calls)"])
    assert result["judged_by"] == "120 rounds in trees of 10 beams and 120 rounds in trees of 16 beams, of 15 prompts"
    for shown in (*speeds, "best fixed of these rounds", "best fixed of these rounds, 16 beams"):
        assert f"\n{shown} " in result["replay"]
    policy = f"Threshold({result['policy']['mass']})"
    assert noted == [(1, "None"), (10, "FixedDepth(8)"), (kept, policy)] * 3  # once to warm up, then two prompts


class Clock:
    """Time that stands still unless somebody moves it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def lines(name):
    return [PromptLine(f"{name} {number}", chat=False) for number in range(9)]


@pytest.mark.parametrize(
    ("wide", "expected", "first", "beams"),
    [
        (0.1, {"judge": 3, "policy": 6, "judge-16": 3, "policy-16": 6}, 0, [10, 16]),  # seconds are left, no prompts
        (2.0, {"judge": 3, "policy": 6, "judge-16": 2, "policy-16": 2}, 0, [10, 16]),
        (2.0, {"judge": 3, "policy": 6, "judge-16": 2, "policy-16": 2}, 4, [10, 16]),
        (2.0, {"judge": 3, "policy": 6, "judge-16": 2, "policy-16": 2}, 5, [10]),  # one prompt has rounds of both
    ],
)
def test_the_time_is_parted_and_16_beams_are_recorded_of_the_prompts_that_10_were(
    wide, expected, first, beams, monkeypatch, tmp_path
):
    """First uses of either take longer than the stage has, and count as nothing. The rounds for policies of 16 beams
    are those of some prompts and of the `first` of these on."""
    clock, done, seen = Clock(monkeypatch), {}, []

    class Source(NamedTuple):
        decoder: object
        temperature: float

        def text(self, ids, limit, *, seed):
            clock.now += 20.0

    def record(decoder, ids, folder, *, texts, max_new_tokens, sources, progress):
        known = done.setdefault(folder.name, [])
        clock.now += (len(texts) - len(known)) * (1.0 if decoder.beams == 10 else wide)
        done[folder.name] = texts
        seen.append((folder.name, decoder.beams, max_new_tokens, sources[0]))
        mean = [0.5 * decoder.beams / 10] * 16
        return {"prompts": len(texts), "rounds": 10 * len(texts), "mean_accept_length_by_calls": mean}

    def with_rounds(folder):
        start = first if folder.name == "policy-16" else 0
        return set(range(start, start + len(done[folder.name])))

    monkeypatch.setattr(rounds, "FullRounds", Source)
    monkeypatch.setattr(rounds, "record", record)
    monkeypatch.setattr(rounds, "encode_prompt", lambda line, tokenizer: [1])
    monkeypatch.setattr(rounds, "_affordable", lambda parts, source, stage: 77)
    monkeypatch.setattr(rounds, "_prompts", with_rounds)
    parts = SimpleNamespace(
        on_gpu=False,
        tokenizer=None,
        split=SimpleNamespace(judge=lines("judge"), rounds=lines("policy")),
        drafting=lambda head, *, beams, engine: SimpleNamespace(beams=beams, tokenizer=None),
    )
    stage = Stage("rounds", tmp_path, {"seconds": 0.0, "share": 16.0, "settled": {}}, lambda: None)
    began = clock.now
    result = rounds.record_rounds(parts, stage, tmp_path / "head")
    assert {name: len(texts) for name, texts in done.items()} == expected
    assert stage.spent() == pytest.approx(clock.now - began)
    assert done["judge-16"] == done["judge"][: expected["judge-16"]]
    assert {one[:3] for one in seen} == {(name, 16 if "16" in name else 10, 77) for name in expected}
    assert all(decoder.beams == width and temperature == 0 for _, width, _, (decoder, temperature) in seen)
    assert {name: result[name]["prompts"] for name in expected} == expected
    assert (result["beams"], result["tokens_per_round"]) == (beams, 1.5), "EAGLE-3's figures are of its own beams"
    learnt_from = 10 * (expected["policy"] + (expected["policy-16"] if 16 in beams else 0))
    assert f"{learnt_from} rounds to" in rounds.say_rounds(result)


def test_draft_calls_are_timed_with_each_width_in_turn_and_all_else_once(monkeypatch, tmp_path):
    """Medians of the turns count: in the second one the machine is slow."""
    seen, model, draft = [], tiny_target(vocab_size=24), tiny_draft(vocab_size=24)

    def drafting(head, *, beams):
        tree = TreeConfig(total_tokens=20, tree_top_k=beams, max_calls=3)
        return RadarDecoder(model, draft=draft, tree=tree, max_length=300, engine="eager", fallback=False)

    def profiled(engine, *, prefix, calls, repeats, nodes=None):
        beams, nodes, network = engine.config.tree_top_k, nodes or engine.config.total_tokens, engine.policy.network
        assert (network.input_size, network.nodes) == (beams, (16, 20))
        noise = 1000 * (beams == 16)
        seen.append((beams, prefix, calls))
        slow = 100 if len(seen) in (3, 4) else 1
        return RoundProfile(
            prefix, nodes, (slow * beams,) * calls, decision=0.1 + noise, select=slow * beams, accept=0.0, commit=0.0,
            verify=slow * (1000 * nodes + prefix + noise), whole=1.0, choice=0.2 + noise, tree_top_k=beams,
        )  # fmt: skip

    monkeypatch.setattr(costs, "profile_round", profiled)
    parts = SimpleNamespace(drafting=drafting, kind="cpu", on_gpu=False, machine="a machine", name="m")
    result = costs.measure(parts, SimpleNamespace(folder=tmp_path), tmp_path, [10, 16])
    assert seen == [(10, 256, 3), (16, 256, 3)] * 7 + [(10, 256, 1)] * 2 + [(10, 296, 1)] * 2
    narrow, wide = costs.costs_of(tmp_path), costs.costs_of(tmp_path, 16)
    assert (narrow.draft_call_seconds, wide.draft_call_seconds) == ((0.01,) * 3, (0.016,) * 3)
    assert (narrow.tree_top_k, wide.tree_top_k) == (10, 16)
    assert (narrow.rest_seconds, wide.rest_seconds) == (0.01, 0.016)
    assert narrow.nodes == (16, 20)
    assert wide.verify_seconds == narrow.verify_seconds == ((16.256, 16.296), (20.256, 20.296))
    assert wide.choice_seconds == narrow.choice_seconds == pytest.approx(0.0002)
    assert wide.decision_seconds == narrow.decision_seconds == pytest.approx(0.0001)
    assert "10.000 ms with 10 beams, 16.000 ms with 16 beams, a verification 20256.000 ms" in costs.say_costs(result)


@pytest.mark.parametrize("beams", [[10], [10, 16]])
def test_a_fit_of_before_goes_on_with_its_one_width(beams, monkeypatch, tmp_path):
    """Its stages' results name no beams; those of today do."""
    before = {
        "text": {"tokens": 9}, "head": {"steps": 3},
        "rounds": {"judge": {"prompts": 2, "rounds": 5}, "policy": {"prompts": 3, "rounds": 7}, "accepted": [0.5],
                   "tokens_per_round": 1.5, "max_new_tokens": 20},
        "costs": {"context": 256, "draft_call": 2.0, "verify": 5.0, "decision": 0.1},
        "policy": {"mass": 0.3, "nodes_by_mass": None, "why_no_network": None, "epochs": 4},
        "judge": {"kept": "tuned threshold", "policy": {"mass": 0.3}, "speed_up": 1.2},
    }  # fmt: skip
    if today := len(beams) > 1:
        before["rounds"] |= {"beams": beams, "judge-16": {"rounds": 1}, "policy-16": {"rounds": 2}}
        before["judge"]["beams"] = 16
    asked, said = [], {}

    class Stages:
        def run(self, name, make, say):
            if name == "policy":
                make(None)
            if name != "report":
                said[name] = say(before[name]) if name not in ("text", "head") else ""
            return make(None) if name == "report" else before[name]

        def seconds(self):
            return {}

    monkeypatch.setattr(fit, "learn", lambda stage, widths: None)
    monkeypatch.setattr(fit, "widths_of", lambda folder, name, beams: asked.append((name, beams)))
    monkeypatch.setattr(fit, "write_report", lambda parts, folder, fitted, *_: {"report": "r", "fitted": fitted})
    found = fit._run(SimpleNamespace(name="m", machine="c"), tmp_path, Stages())
    fitted = found["report"]["fitted"]
    assert asked == [("policy", beams)]
    assert fitted.beams == beams[-1]
    assert fitted.costs == Path(tmp_path, "costs", "costs-16.json" if today else "costs.json")
    assert said["rounds"].startswith(f"{9 if today else 7} rounds to learn from, {6 if today else 5} to judge by; 1.50")
    assert said["costs"] == "a draft call takes 2.000 ms with 10 beams, a verification 5.000 ms"
    assert said["policy"] == "Threshold(0.3) with 10 beams; a network, 4 epochs"
