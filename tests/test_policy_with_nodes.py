"""A network that also says how many nodes are verified: on disk, damaged, and beside the paper's that does not."""

import json

import pytest
import safetensors.torch
import torch
from test_policy import SHAPES, synthetic_state

from radar import FixedDepth, RadarPolicy, Threshold, TreeConfig
from radar.errors import FormatError, UsageError
from radar.policy.base import nodes_of_policy
from radar.policy.baselines import Capped
from radar.policy.by_mass import NodesByMass
from radar.policy.network import NODE_NAMES, STOP_NAMES, PolicyNetwork
from radar.policy.network_files import load_policy, save_policy

NODES = (4, 16, 60)
CPU = torch.device("cpu")


def network(nodes=NODES):
    torch.manual_seed(0)
    return PolicyNetwork(6, 20, mlp_size=12, nodes=nodes).eval()


def head_shapes():
    return dict(zip(NODE_NAMES, ((12, 20 + 6 + 3), (12,), (3, 12), (3,)), strict=True))


def test_a_saved_network_comes_back(tmp_path):
    ours = network()
    save_policy(ours, tmp_path, metadata={"objective": "ratio"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["nodes"], config["version"]) == ([4, 16, 60], 1)
    stored = safetensors.torch.load_file(tmp_path / "policy.safetensors")
    assert {name: stored[name].shape for name in NODE_NAMES} == head_shapes()
    loaded = load_policy(tmp_path)
    assert (loaded.nodes, loaded.training) == (NODES, False)
    scores, mass = -torch.rand(5, 3, 6), torch.rand(5, 3, 3)
    for mine, theirs in zip(ours.both(scores, mass), loaded.both(scores, mass), strict=True):
        assert torch.equal(mine, theirs)
    policy = RadarPolicy(tmp_path)
    assert nodes_of_policy(policy) == policy.nodes == NODES
    assert "nodes=[4, 16, 60]" in repr(policy)


def test_one_that_chooses_none_is_stored_as_ever(tmp_path):
    ours = network(())
    save_policy(ours, tmp_path)
    assert "nodes" not in json.loads((tmp_path / "config.json").read_text())
    assert safetensors.torch.load_file(tmp_path / "policy.safetensors").keys() == set(STOP_NAMES)
    loaded = load_policy(tmp_path)
    assert loaded.nodes == nodes_of_policy(RadarPolicy(loaded)) == ()
    assert loaded.state_dict().keys() == set(STOP_NAMES)
    assert "nodes" not in repr(RadarPolicy(loaded))


def test_an_upstream_state_dict_is_a_network_that_chooses_none(tmp_path):
    torch.save(synthetic_state(), tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt")
    assert loaded.nodes == ()
    assert {name: tuple(value.shape) for name, value in loaded.state_dict().items()} == SHAPES
    PolicyNetwork().load_state_dict(synthetic_state())  # strictly


def test_the_words_about_stopping_are_the_same_with_a_second_head():
    """And of its own number of draws: the first head of a seed is that of a network without the second."""
    scores, mass = -torch.rand(5, 3, 6), torch.rand(5, 3, 3)
    assert torch.equal(network()(scores), network(())(scores))
    assert torch.equal(network().both(scores, mass)[0], network()(scores))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("16", "nodes must be a list of integers from 2 to 256, got '16'"),
        ([16, 2.5], r"nodes must be a list of integers from 2 to 256, got \[16, 2.5\]"),
        ([1, 16, 60], "from 2 to 256"),
        ([4, 16, 257], "from 2 to 256"),
        ([True, 16, 60], "from 2 to 256"),
        ([16, 4, 60], r"nodes must be ascending, got \[16, 4, 60\]"),
        ([4, 4, 60], "ascending"),
        ([4, 16], r"nodes_head.3.bias: expected \[2\], found \[3\]"),
        ([], r"nodes_head.0.weight: unknown tensor \[12, 29\]"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, nodes, message):
    save_policy(network(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"nodes": nodes}))
    with pytest.raises(FormatError, match=message):
        load_policy(tmp_path)


def test_weights_without_their_config_are_refused(tmp_path):
    """They do not say which numbers they choose among."""
    save_policy(network(), tmp_path)
    assert load_policy(tmp_path / "policy.safetensors").nodes == network().nodes
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config.json beside it would name: give its folder"):
        load_policy(tmp_path)


@pytest.mark.parametrize("name", NODE_NAMES)
def test_each_tensor_of_the_second_head_is_needed(tmp_path, name):
    save_policy(network(), tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "policy.safetensors")
    kept = stored.pop(name)
    safetensors.torch.save_file(stored, tmp_path / "policy.safetensors")
    with pytest.raises(FormatError, match=rf"{name}: missing, expected"):
        load_policy(tmp_path)
    safetensors.torch.save_file(stored | {name: kept * torch.nan}, tmp_path / "policy.safetensors")
    with pytest.raises(FormatError, match=rf"{name}: .* values are not finite"):
        load_policy(tmp_path)


@pytest.mark.parametrize("nodes", [(16, 4), (4, 4), (1, 4), (4, 257), (4, 5.5)])
def test_a_network_is_made_for_ascending_numbers(nodes):
    with pytest.raises(UsageError, match="nodes must be ascending integers from 2 to 256"):
        PolicyNetwork(nodes=nodes)


def test_a_rule_says_what_is_wrong_with_its_numbers_or_prices():
    for nodes, prices in (((16, 4), (0.0, 1.0)), ((4, 16), (0.0,)), ((), ())):
        with pytest.raises(UsageError, match="needs ascending nodes and a price of each"):
            NodesByMass(Threshold(), nodes, prices)
    with pytest.raises(UsageError, match="prices must be finite numbers of tokens"):
        NodesByMass(Threshold(), (4, 16), (0.0, float("nan")))
    rule = NodesByMass(Threshold(0.3), (4, 16), (0.0, 1.25))
    assert repr(rule) == "NodesByMass(Threshold(0.3), [4, 16], [0, 1.25])"
    with pytest.raises(UsageError, match=r"NodesByMass\.nodes is fixed"):
        rule.nodes = (4, 8)


def test_a_rule_takes_the_numbers_whose_mass_pays_the_first_of_equals():
    rule = NodesByMass(FixedDepth(2), (4, 16, 60), (0.0, 0.5, 1.0))
    rule.bind(4, TreeConfig(), CPU)
    mass = torch.tensor([[1.0, 1.4, 1.8], [1.0, 1.6, 1.9], [1.0, 1.5, 2.0], [1.0, 1.6, 2.5]])
    assert rule.choose(mass).tolist() == [0, 1, 0, 2]


def test_a_policy_around_one_that_chooses_hands_its_choice_on():
    assert nodes_of_policy(Capped(RadarPolicy(network()), 4)) == network().nodes
    assert nodes_of_policy(NodesByMass(RadarPolicy(network()), (4, 9), (0.0, 1.0))) == (4, 9)
