"""The parts of a round, timed; and the command that writes them."""

import json
import time
from functools import partial

import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, RadarPolicy, TreeConfig
from radar.cli.main import main
from radar.errors import UsageError
from radar.policy.base import nodes_of_policy
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.tools import profile as profile_module
from radar.tools.profile import RoundProfile, cost_table, profile_round

PROMPT = [3, 1, 4, 1, 5]
COMMAND = ["profile", "--calls", "1", "--repeats", "1", "--total-tokens", "8", "--device", "cpu"]


def decoder(**options):
    return RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TreeConfig(total_tokens=20, max_calls=5),
        max_length=200, **options,
    )  # fmt: skip


def test_every_part_gets_its_own_time_and_the_round_takes_all_of_it(monkeypatch):
    """On a clock that the parts move: 1 ms the policy, 2 ms a selection, ..."""
    takes = {"stop": 1, "select": 2, "step": 3, "begin": 5, "accept": 7, "commit": 11, "verify": 40}
    ours, now = decoder(engine="eager", fallback=False), [0.0]
    steps = ours.engine.steps

    def timed(part, milliseconds):
        def run(*args):
            now[0] += milliseconds / 1000
            return part(*args)

        return run

    for name, milliseconds in takes.items():
        setattr(steps, name, timed(getattr(steps, name), milliseconds))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    profile = profile_round(ours.engine, prefix=50, calls=3, repeats=2)
    assert profile.draft_calls == pytest.approx((5, 3, 3))
    assert {name: getattr(profile, name) for name in ("decision", "select", "verify", "accept", "commit")} == (
        pytest.approx({"decision": 1, "select": 2, "verify": 40, "accept": 7, "commit": 11})
    )
    rounds = ours.rounds(PROMPT)
    next(rounds)
    before = now[0]
    assert next(rounds).num_draft_calls == 3
    assert profile.whole == pytest.approx(1000 * (now[0] - before))
    assert sum(profile.parts().values()) == pytest.approx(profile.whole)


def chooses():
    return decoder(engine="eager", fallback=False), RadarPolicy(PolicyNetwork(nodes=(4, 20, 40)))


def test_a_choice_of_nodes_is_a_part_of_its_own(monkeypatch):
    ours, policy = chooses()
    assert profile_round(ours.engine, prefix=50, calls=2, repeats=1).choice == 0
    assert "choice of nodes" not in profile_round(ours.engine, prefix=50, calls=2, repeats=1).parts()
    ours.policy = policy
    assert profile_round(ours.engine, prefix=50, calls=2, repeats=1).choice > 0, "an assigned policy is not in use yet"
    now, choice, verify = [0.0], ours.engine.steps.sized.choice, ours.engine.steps.verify

    def slow(part, milliseconds):
        now[0] += milliseconds / 1000
        return part()

    ours.engine.steps.sized.choice = partial(slow, choice, 4)
    ours.engine.steps.verify = partial(slow, verify, 40)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    profile = profile_round(ours.engine, prefix=50, calls=2, repeats=2)
    assert (profile.choice, profile.parts()["choice of nodes"]) == pytest.approx((4, 4))
    assert (profile.verify, profile.whole) == pytest.approx((40, 44))
    assert sum(profile.parts().values()) == pytest.approx(profile.whole)
    assert cost_table([profile], device="d", pair="p").choice_seconds == pytest.approx(0.004)


@pytest.mark.parametrize("nodes", [2, 9, 60])
def test_another_number_of_nodes_can_be_timed(nodes, monkeypatch):
    ours, seen = decoder(engine="eager"), []
    verify = ours.engine.target.verify

    def noted(ids, *rest):
        seen.append(ids.shape[1])
        return verify(ids, *rest)

    monkeypatch.setattr(ours.engine.target, "verify", noted)
    assert profile_round(ours.engine, prefix=50, calls=1, repeats=1, nodes=nodes).nodes == nodes
    assert set(seen) == {nodes}
    assert ours.generate(PROMPT, max_new_tokens=40).token_ids == hf_greedy(tiny_target(), PROMPT, 40)
    room = ours.engine.target.max_rows
    with pytest.raises(UsageError, match=f"nodes must be an integer from 2 to {room}, got {room + 1}"):
        profile_round(ours.engine, prefix=50, calls=1, nodes=room + 1)


def test_parts_take_time():
    profile = profile_round(decoder().engine, prefix=50, calls=4, repeats=5)
    assert len(profile.draft_calls) == 4
    assert profile.verify > 0
    assert profile.whole > profile.verify
    assert profile.draft_step > 0
    assert (profile.to_dict()["nodes"], profile.tree_top_k) == (20, 10)
    assert cost_table([profile], device="d", pair="p").tree_top_k == 10


def test_decoding_is_right_after_profiling():
    ours = decoder()
    profile_round(ours.engine, prefix=150, calls=5, repeats=1)
    assert ours.generate(PROMPT, max_new_tokens=40).token_ids == hf_greedy(tiny_target(), PROMPT, 40)


@pytest.mark.parametrize(("prefix", "calls", "message"), [(0, 2, "prefix must"), (201, 2, "prefix"), (9, 6, "calls")])
def test_what_does_not_fit_is_refused(prefix, calls, message):
    with pytest.raises(ValueError, match=message):
        profile_round(decoder().engine, prefix=prefix, calls=calls)


@pytest.mark.parametrize("repeats", ["0", "-1"])
def test_no_repeats_are_refused_by_name(repeats, capsys):
    assert main([*COMMAND, "--prefix", "9", "--repeats", repeats]) == 2
    assert f"radar profile: repeats must be 1 or more, got {repeats}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--costs", "--trace"])
@pytest.mark.parametrize("place", ["nosuch/c.json", "."])
def test_a_place_that_cannot_be_written_is_refused_first(option, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RadarDecoder, "from_pretrained", lambda *_, **__: pytest.fail("a decoder was made"))
    assert main([*COMMAND, option, str(tmp_path / place)]) == 2
    assert f"radar profile: {option} must name a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "begun_again"),
    [(["--prefix", "20"], False), (["--prefix", "4", "--max-length", "12"], True)],  # an early end token; no room
)
def test_a_trace_holds_rounds_whatever_the_text_does(arguments, begun_again, tmp_path, capsys, monkeypatch):
    seen, rounds = [], RadarDecoder.rounds

    def noted(self, *args, **options):
        for one in rounds(self, *args, **options):
            seen.append(one.is_prefill)
            yield one

    monkeypatch.setattr(RadarDecoder, "rounds", noted)
    assert main([*COMMAND, *arguments, "--trace", str(tmp_path / "t.json")]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert len(seen) == 3 + 5  # three are not in the trace
    assert (sum(seen) > 1) == begun_again


def test_the_cost_table_holds_what_was_measured(tmp_path, monkeypatch):
    """Decisions are a network's, and so is a choice of nodes, where one could be made; whatever the policy in hand."""
    chose = []

    def measured(engine, *, prefix, calls, repeats):
        nodes, choices = engine.config.total_tokens, nodes_of_policy(engine.policy)
        chose.append(choices)
        network = isinstance(engine.policy, RadarPolicy)
        return RoundProfile(
            prefix, nodes, tuple(range(9, 9 + calls)), decision=5 if network else 0.5, select=1, accept=20, commit=300,
            verify=1000 * nodes + prefix, whole=1, choice=7 if choices else 0,
        )  # fmt: skip

    monkeypatch.setattr(profile_module, "profile_round", measured)
    file = tmp_path / "c.json"
    sizes = ["--prefix", "30", "60", "--nodes", "12", "8", "--max-calls", "3"]
    assert main([*COMMAND, *sizes, "--costs", str(file)]) == 0
    table = json.loads(file.read_text())
    assert table["draft_call_seconds"] == pytest.approx([0.009, 0.010, 0.011])
    assert (table["nodes"], table["contexts"]) == ([8, 12], [30, 60])
    assert table["verify_seconds"] == [pytest.approx([8.03, 8.06]), pytest.approx([12.03, 12.06])]
    assert table["decision_seconds"] == pytest.approx(0.005)
    assert table["choice_seconds"] == pytest.approx(0.007)
    assert table["rest_seconds"] == pytest.approx(0.321)
    assert chose == [()] * 4 + [(8, 12)]
    for others, choices in (
        (["--prefix", "30", "--nodes", "12"], ()),
        (["--prefix", "30", "--nodes", "8", "12", "60", "--max-calls", "1"], ()),  # of ten candidates
        (["--prefix", "30", "--nodes", "8", "12", "--policy", str(chooses_by(tmp_path, (4, 8)))], (8, 12)),
    ):
        chose.clear()
        assert main([*COMMAND, *others, "--costs", str(file)]) == 0
        table = json.loads(file.read_text())
        assert chose[-1] == choices, others
        assert table["choice_seconds"] == pytest.approx(0.007 if choices else 0), others
        assert table["decision_seconds"] == pytest.approx(0.005), others


def chooses_by(folder, nodes):
    save_policy(PolicyNetwork(nodes=nodes), folder / "policy")
    return folder / "policy"


def test_a_slow_part_is_seen_as_slow():
    ours = decoder()
    x, plain = torch.randn(300, 300, device=DEVICE), ours.engine.steps.accept

    def slow(tokens):
        plain(tokens)
        for _ in range(200):
            x @ x

    before = profile_round(ours.engine, prefix=50, calls=2, repeats=5)
    ours.engine.steps.accept = slow
    after = profile_round(ours.engine, prefix=50, calls=2, repeats=5)
    assert after.accept > 5 * before.accept
