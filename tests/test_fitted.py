"""The folder of `radar fit` as a decoder reads it: each kind of policy, and what is none."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import pytest
from fakes import hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.cli.costs import costs_of
from radar.cli.decoders import make_decoder
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
    assert (found.draft, found.costs, found.beams) == (tmp_path / "head", tmp_path / "costs" / "costs.json", 10)


def test_a_decoder_takes_head_and_policy_from_it(tmp_path):
    save_draft(tiny_draft(), tmp_path / "head")
    write_fitted(tmp_path, draft="head", policy={"mass": 0.31}, costs="costs.json", about={})
    found = RadarDecoder(tiny_target(), draft=tmp_path)
    assert repr(found.policy) == "Threshold(0.31)"
    assert found.draft.config == tiny_draft().config
    assert repr(RadarDecoder(tiny_target(), draft=tmp_path, policy=FixedDepth(2)).policy) == "FixedDepth(2)"


def wide_fit(folder, policy, beams=16):
    """For `tiny_target(vocab_size=24)`."""
    save_draft(tiny_draft(vocab_size=24), folder / "head")
    save_policy(PolicyNetwork(beams).eval(), folder / "network")
    write_fitted(folder, draft="head", policy=policy, costs="costs.json", about={}, beams=beams)
    return tiny_target(vocab_size=24)


@pytest.mark.parametrize("policy", [{"mass": 0.31}, {"network": "network"}])
def test_a_decoder_takes_its_beams_and_writes_the_models_text(tmp_path, policy):
    model, prompts = wide_fit(tmp_path, policy), ([3, 1, 4], [2, 7, 18, 2])
    decoder = RadarDecoder(model, draft=tmp_path, max_length=100, fallback=False)
    assert (decoder.tree.tree_top_k, decoder.tree.max_calls) == (16, 16)
    expected = [hf_greedy(model, prompt, 40) for prompt in prompts]
    assert [decoder.generate(prompt, max_new_tokens=40).token_ids for prompt in prompts] == expected
    several = RadarDecoder(model, draft=tmp_path, max_length=100, max_batch_size=2, fallback=False)
    assert several.tree.tree_top_k == 16
    assert [one.token_ids for one in several.generate([*prompts], max_new_tokens=40)] == expected


def test_a_tree_of_ones_own_wins_and_a_network_of_other_beams_is_refused(tmp_path):
    own, model = TreeConfig(total_tokens=20, max_calls=4), wide_fit(tmp_path / "rule", {"mass": 0.31})
    decoder = RadarDecoder(model, draft=tmp_path / "rule", tree=own)
    assert (decoder.tree, repr(decoder.policy)) == (own, "Threshold(0.31)")
    for beams, other in ((16, 10), (10, 16)):
        wide_fit(folder := tmp_path / str(beams), {"network": "network"}, beams)
        tree = TreeConfig(total_tokens=20, max_calls=4, tree_top_k=other)
        refusal = (
            rf"reads {beams} scores a level, but the tree has tree_top_k={other}: use TreeConfig\(tree_top_k={beams}"
        )
        with pytest.raises(UsageError, match=refusal):
            RadarDecoder(model, draft=folder, tree=tree)
        decoder = RadarDecoder(model, draft=folder, tree=tree, policy=FixedDepth(2))
        with pytest.raises(UsageError, match=refusal):
            decoder.policy = "auto"
        assert decoder.tree == tree
    assert RadarDecoder(model, draft=tmp_path / "16", policy=FixedDepth(2)).tree.tree_top_k == 16


def test_commands_take_its_beams_with_sizes_of_their_own(tmp_path):
    assets = Path(str(files("radar"))) / "assets"
    (tmp_path / "head").symlink_to(assets / "draft")
    write_fitted(tmp_path, draft="head", policy={"mass": 0.31}, costs="costs.json", about={}, beams=16)
    args = argparse.Namespace(
        target=str(assets / "target"), draft=str(tmp_path), policy=None, device="cpu", dtype="float32", engine=None,
        total_tokens=20, max_calls=4, max_length=100,
    )  # fmt: skip
    decoder = make_decoder(args)
    assert decoder.tree == TreeConfig(total_tokens=20, tree_top_k=16, max_calls=4)
    assert repr(decoder.policy) == "Threshold(0.31)"
    decoder = RadarDecoder.from_pretrained(args.target, tmp_path, FixedDepth(2), device="cpu", max_length=100)
    assert decoder.tree == TreeConfig(total_tokens=32, tree_top_k=16)
    decoder.policy = "auto"
    assert repr(decoder.policy) == "Threshold(0.31)"
    args.draft = str(assets / "draft")
    assert make_decoder(args).tree.tree_top_k == 10


@pytest.mark.parametrize(("kept", "reads"), [(16, 10), (10, 16)])
def test_commands_refuse_a_network_of_other_beams_before_a_model_is_loaded(tmp_path, capsys, kept, reads):
    wide_fit(fit := tmp_path / "fit", {"mass": 0.31}, kept)
    save_policy(PolicyNetwork(reads), tmp_path / "network")
    model = ["--target", str(tmp_path / "no target"), "--draft", str(fit)]
    assert main(["generate", "hello", *model, "--policy", str(tmp_path / "network")]) == 2
    err = capsys.readouterr().err
    assert f"network reads {reads} scores a level, and the trees have {kept} beams: give a policy that was" in err
    assert (f"trained for 16, or --draft {fit / 'head'}, with trees of 10\n" in err) == (reads == 10)


def test_a_fit_of_before_has_the_beams_of_eagle(tmp_path):
    """And a release of before does not take a rule of other beams for one of those: it knows the first version."""
    for beams, version in ((10, 1), (16, 2)):
        wide_fit(tmp_path, {"mass": 0.31}, beams)
        values = json.loads((tmp_path / "fit.json").read_text())
        assert (values.pop("beams"), values["version"], read_fitted(tmp_path).beams) == (beams, version, beams)
    (tmp_path / "fit.json").write_text(json.dumps(values))
    assert read_fitted(tmp_path).beams == 10
    for wrong in (0, 17, "16", None, True):
        (tmp_path / "fit.json").write_text(json.dumps(values | {"beams": wrong}))
        with pytest.raises(UsageError, match="tree_top_k must be an integer from 1 to 16"):
            read_fitted(tmp_path)


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
        whole % (3, "{}"),
    ):
        file.write_text(text)
        named = r"damaged|is not of the format|mass must be|needs ascending nodes"
        with pytest.raises((FormatError, UsageError), match=named):
            read_fitted(tmp_path)
