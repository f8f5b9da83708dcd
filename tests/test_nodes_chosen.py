"""What is made of recorded numbers of nodes: prices, tuning, training, the judge's choice, files, and "auto"."""

import json
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from radar import FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.errors import FormatError, UsageError
from radar.fit import policy as learning
from radar.fit.widths import Width
from radar.policy.baselines import Capped
from radar.policy.by_mass import NodesByMass
from radar.policy.fitted import policy_of, write_fitted
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import load_policy, save_policy
from radar.replay.replay import ends_of, replay, tune, tune_fixed
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable
from radar.train.contenders import MASSES, tune_nodes_by_mass
from radar.train.policy import train_policy

NODES, CALLS, K = (8, 32), 4, 3
TREE = TreeConfig(total_tokens=32, tree_top_k=K, max_calls=CALLS)
COSTS = CostTable(
    draft_call_seconds=(0.05,) * CALLS, nodes=NODES, contexts=(0,), verify_seconds=((1.0,), (2.0,)),
    decision_seconds=0.0, rest_seconds=0.0, device="any", pair="any",
)  # fmt: skip


def planted(count=1200, seed=0):
    """Sure rounds, whose first nodes are right, and flat ones, where many nodes bring two tokens more."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.rand(count, generator=generator) < 0.5
    scores = torch.where(flat[:, None, None], -2.0, -0.1) * torch.arange(1, CALLS + 1)[:, None]
    scores = (
        scores.expand(count, CALLS, K) - 0.1 * torch.arange(K) - 0.01 * torch.rand(count, 1, 1, generator=generator)
    )
    few = torch.where(flat, 0, torch.tensor(2))[:, None].expand(count, CALLS)
    many = torch.where(flat, 2, torch.tensor(2))[:, None].expand(count, CALLS)
    reached = torch.arange(1, CALLS + 1)
    accepted = torch.stack((few, many), -1).minimum(reached[:, None])
    mass = torch.stack((torch.where(flat, 0.3, 2.0), torch.where(flat, 2.2, 2.1)), -1)[:, None].expand(count, CALLS, 2)
    return RoundDataset(
        scores=scores.contiguous(),
        accept_lengths=accepted[..., 1],
        prompt=torch.arange(count) // 20,
        position=torch.arange(count) % 20 + 5,
        header=RoundsHeader(TREE, nodes=NODES),
        accepted_by_nodes=accepted.to(torch.uint8),
        mass_by_nodes=mass.contiguous(),
    )


DATA = planted()
BEST = tune_fixed(DATA, COSTS)


def test_numbers_that_a_larger_one_undercuts_are_no_choice():
    told = {"nodes": [8, 16, 24, 32], "verify_seconds": [[1.0], [3.0], [2.0], [2.5]]}
    table = CostTable.from_dict(COSTS.to_dict() | told)
    assert table.worth_choosing((4, 8, 16, 24, 32, 64), TREE) == (8, 24, 32)
    assert CostTable.constant(call=1, rest=1).worth_choosing(NODES, TREE) == (32,)


def test_a_rule_and_a_network_find_what_no_fixed_number_does(tmp_path):
    fixed = max(BEST.curve.values())
    rule = tune_nodes_by_mass(DATA, COSTS)
    assert isinstance(rule.policy, NodesByMass)
    result = train_policy(DATA, tmp_path, costs=COSTS, epochs=12, progress=False, batch_size=64)
    assert result["collapsed"] is None  # always after one call, but with either number of nodes
    network = load_policy(tmp_path)
    assert network.nodes == NODES
    alone = max(tune(Threshold, MASSES, DATA, COSTS).curve.values())
    for policy, bar in ((rule.policy, 1.2 * alone), (network, 1.03 * fixed)):
        found = replay(policy, planted(seed=1), COSTS)
        assert found.tokens_per_time > bar
        assert set(found.node_histogram) == set(NODES)
    flat = CostTable.constant(call=0.05, rest=1.0)
    assert isinstance(tune_nodes_by_mass(DATA, flat).policy, Threshold)  # there is nothing to choose


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ({"nodes": (8,)}, (8,)),
        ({"nodes": (32,)}, ()),
        ({"nodes": (8,), "objective": "paper"}, (8,)),
        ({"objective": "paper"}, ()),
        ({"costs": CostTable.constant(call=0.05, rest=1.0)}, ()),
    ],
)
def test_a_policy_for_another_number_than_the_trees_says_so(options, nodes, tmp_path):
    train_policy(DATA, tmp_path, **({"costs": COSTS, "epochs": 1, "progress": False} | options))
    network = load_policy(tmp_path)
    assert network.nodes == nodes
    assert set(ends_of(network, DATA).nodes_of(DATA).tolist()) == {nodes[0] if nodes else 32}


def test_a_run_goes_on_with_its_weights(tmp_path):
    options = {"costs": COSTS, "progress": False, "batch_size": 64}
    whole = train_policy(DATA, tmp_path / "whole", epochs=3, **options)
    for _ in range(2):
        part = train_policy(DATA, tmp_path / "part", epochs=3, seconds=0.0, **options)
        assert part["epochs"] == 1  # no epoch begins behind the time
    again = train_policy(DATA, tmp_path / "part", epochs=3, **options)
    assert again["history"] == whole["history"]


def test_files_of_networks_that_choose(tmp_path):
    torch.manual_seed(0)
    network = PolicyNetwork(K, 16, nodes=NODES).eval()
    save_policy(network, tmp_path / "folder")
    for path in (tmp_path / "folder", tmp_path / "folder" / "policy.safetensors"):
        again = load_policy(path)
        assert again.nodes == NODES
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    torch.save(network.state_dict(), tmp_path / "alone.pt")
    with pytest.raises(FormatError, match=r"which config\.json beside it would name: give its folder"):
        load_policy(tmp_path / "alone.pt")
    config = tmp_path / "folder" / "config.json"
    for wrong in ([32, 8], [1, 8], "8", [8, 16, 32]):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"nodes": wrong}))
        with pytest.raises(FormatError, match=r"nodes must be|nodes_head"):
            load_policy(tmp_path / "folder")


def test_a_policy_around_another_hands_its_choice_on():
    torch.manual_seed(0)
    inner = RadarPolicy(PolicyNetwork(K, 16, nodes=NODES).eval())
    capped = Capped(inner, 2)
    assert capped.nodes == NODES
    one, other = ends_of(capped, DATA), ends_of(inner, DATA)
    early = other.calls <= 2
    assert torch.equal(one.chosen[early], other.chosen[early])
    assert one.calls.max() <= 2
    assert NodesByMass(inner, (8,), (0.0,)).nodes == (8,)
    assert Capped(FixedDepth(3), 2).nodes == ()
    for nodes in ([1, 8], [2.5, 8], [8, 300], [8, 8]):
        with pytest.raises(UsageError, match=r"NodesByMass: (nodes must be|needs ascending)"):
            NodesByMass(inner, nodes, [0.0, 0.0])


def test_a_rule_is_told_in_a_folder(tmp_path):
    told = {"mass": 0.2, "nodes": [8, 32], "prices": [0.0, 0.4]}
    assert repr(policy_of(tmp_path, told)) == repr(NodesByMass(Threshold(0.2), (8, 32), (0.0, 0.4)))


def test_auto_is_what_a_fit_has_kept_also_later(tmp_path):
    decoder = RadarDecoder.from_pretrained(device="cpu", policy="auto")
    assert isinstance(own := decoder.policy, RadarPolicy)
    decoder.policy = FixedDepth(3)
    decoder.policy = "auto"
    assert decoder.policy is own
    write_fitted(tmp_path, draft="head", policy={"mass": 0.31}, costs="costs.json", about={})
    (tmp_path / "head").symlink_to(Path(str(files("radar"))) / "assets" / "draft")
    fitted = RadarDecoder(decoder.model, draft=tmp_path, policy=FixedDepth(2))
    assert fitted.policy.calls == 2
    fitted.policy = None
    assert fitted.policy.mass == 0.31
    assert RadarDecoder(decoder.model, draft=decoder.draft, policy="auto").policy.mass == Threshold().mass


def test_a_fit_of_before_goes_on(tmp_path):
    """Its policies' stage knew no rule that chooses nodes, and left a state of other settings."""
    train_policy(DATA, tmp_path, costs=COSTS, epochs=2, progress=False, nodes=(32,), seconds=0.0)
    stage = SimpleNamespace(folder=tmp_path, left=lambda: 0.0)
    found = learning.learn(stage, [Width(DATA, COSTS)])
    assert found["epochs"] == 1
    assert load_policy(tmp_path).nodes == NODES
    rule = found["rules"][0]
    assert rule["nodes_by_mass"]["nodes"] == list(NODES)
    said = f"Threshold({rule['mass']:g}) and one rule that chooses nodes with {K} beams; "
    assert learning.say_policy(found).startswith(said)
