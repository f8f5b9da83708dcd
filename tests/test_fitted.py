"""The folder of `radar fit` as a decoder reads it: each kind of policy, and what is none."""

import argparse

import pytest
from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, RadarPolicy, Threshold
from radar.cli.costs import costs_of
from radar.cli.main import main
from radar.draft.checkpoint import save_draft
from radar.errors import FormatError, UsageError
from radar.policy.by_mass import NodesByMass
from radar.policy.fitted import read_fitted, write_fitted
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.tools.costs import CostTable


@pytest.mark.parametrize(
    ("told", "policy"),
    [
        ({"calls": 5}, FixedDepth(5)),
        ({"mass": 0.3}, Threshold(0.3)),
        ({"mass": 0.3, "nodes": [4, 16], "prices": [0.0, 0.5]}, NodesByMass(Threshold(0.3), [4, 16], [0.0, 0.5])),
        ({"network": "p"}, RadarPolicy(PolicyNetwork())),
    ],
)
def test_what_was_written_is_read(tmp_path, told, policy):
    save_policy(PolicyNetwork(), tmp_path / "p")
    write_fitted(tmp_path, draft="head", policy=told, costs="costs/costs.json", about={"kept": "it"})
    found = read_fitted(tmp_path)
    assert repr(found.policy) == repr(policy)
    assert (found.draft, found.costs) == (tmp_path / "head", tmp_path / "costs" / "costs.json")


def test_a_decoder_takes_head_and_policy_from_it(tmp_path):
    save_draft(tiny_draft(), tmp_path / "head")
    write_fitted(tmp_path, draft="head", policy={"mass": 0.31}, costs="costs.json", about={})
    found = RadarDecoder(tiny_target(), draft=tmp_path)
    assert repr(found.policy) == "Threshold(0.31)"
    assert found.draft.config == tiny_draft().config
    assert repr(RadarDecoder(tiny_target(), draft=tmp_path, policy=FixedDepth(2)).policy) == "FixedDepth(2)"


def test_commands_take_its_costs_and_its_head(tmp_path, monkeypatch):
    save_draft(tiny_draft(), tmp_path / "head")
    write_fitted(tmp_path, draft="head", policy={"mass": 0.31}, costs="costs.json", about={})
    rest = {"verify_seconds": ((5.0,), (6.0,)), "decision_seconds": 0.1, "rest_seconds": 2.0}
    table = CostTable(draft_call_seconds=(1.0,), nodes=(16, 32), contexts=(512,), device="a card", pair="it", **rest)
    table.save(tmp_path / "costs.json")
    args = argparse.Namespace(costs=str(tmp_path), any_device=True, call_time=None, decision_time=None, rest_time=None)
    assert costs_of(args) == table
    looked_at = []
    monkeypatch.setattr("radar.draft.checkpoint.head_folder", looked_at.append)
    assert main(["doctor", str(tmp_path / "no target"), str(tmp_path)]) == 2
    assert looked_at == [tmp_path / "head"]


def test_other_folders_are_none_and_damage_is_named(tmp_path):
    assert read_fitted(tmp_path) is None
    assert read_fitted(tmp_path / "nowhere") is None
    (tmp_path / "stages").mkdir()
    with pytest.raises(UsageError, match="has not ended: give the same command again"):
        RadarDecoder(tiny_target(), draft=tmp_path)
    file = tmp_path / "fit.json"
    whole = '{"format": "radar-fit", "version": %d, "draft": "head", "policy": %s, "costs": "costs.json"}'
    for text in (
        "{",
        "[]",
        '{"format": "radar-fit"}',
        whole % (1, "{}"),
        whole % (1, '{"mass": 3}'),
        whole % (1, '{"mass": 0.3, "nodes": [4, 16]}'),
        whole % (1, '{"mass": 0.3, "nodes": [16, 4], "prices": [0.0, 0.5]}'),
        whole % (1, '{"mass": 0.3, "nodes": [4, 16], "prices": "few"}'),
        whole % (2, "{}"),
    ):
        file.write_text(text)
        named = r"damaged|is not of the format|mass must be|needs ascending nodes"
        with pytest.raises((FormatError, UsageError), match=named):
            read_fitted(tmp_path)
