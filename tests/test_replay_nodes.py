"""Replay of policies that say how many nodes are verified: by hand, beside the served network, and beside decoding."""

from dataclasses import replace

import pytest
import torch
from test_record import PROMPTS, make

from radar import AutoregressiveDecoder, FixedDepth, RadarPolicy, SamplingParams, Threshold, TreeConfig
from radar.errors import UsageError
from radar.policy.base import RoundSignals, bound_copy
from radar.policy.baselines_history import GammaTune
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork
from radar.replay.ends import Ends
from radar.replay.evaluate import BEST_FIXED, HINDSIGHT, KNOWING, evaluate, oracle_ends
from radar.replay.record import record
from radar.replay.recording import read_rounds
from radar.replay.replay import ends_of, followed, replay, replay_ends, tune_fixed
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable

NODES, CALLS, K = (4, 16, 32), 6, 3
TREE = TreeConfig(total_tokens=4, tree_top_k=K, max_calls=CALLS)


def table(verify=(1.0, 2.0, 4.0), nodes=NODES, choice=0.25, decision=0.125):
    return CostTable(
        draft_call_seconds=(0.5,) * CALLS, nodes=nodes, contexts=(0,), verify_seconds=tuple((v,) for v in verify),
        decision_seconds=decision, rest_seconds=3.0, device="any", pair="any", choice_seconds=choice,
    )  # fmt: skip


def made_up(rounds=60, temperature=0.0, seed=0):
    """Deeper stops and more nodes never accept less."""
    generator = torch.Generator().manual_seed(seed)
    scores = (-torch.rand(rounds, CALLS, K, generator=generator)).cumsum(1).sort(dim=2, descending=True).values
    lost = torch.randint(0, 3, (rounds, 3), generator=generator).cumsum(1).flip(1)  # by fewer nodes
    depth = torch.randint(0, CALLS + 1, (rounds, 1, 1), generator=generator)
    accepted = torch.minimum((depth - lost[:, None]).clamp(min=0), torch.arange(1, CALLS + 1)[:, None])
    parts = {"accepted_by_nodes": accepted.to(torch.uint8)}
    parts["mass_by_nodes"] = torch.rand(rounds, CALLS, 3, generator=generator).cumsum(1).cumsum(2)
    if temperature:
        parts["expected_by_nodes"] = accepted * 0.5 + 0.1
    prompt, position = torch.arange(rounds) // 10, torch.arange(rounds) % 10 * 7
    header = RoundsHeader(TREE, temperature, nodes=NODES)
    return RoundDataset(scores, accepted[..., 0].long(), prompt, position, header, **parts)


def places(nodes):
    return [NODES.index(n) for n in nodes]


def network(data, nodes=NODES, seed=1):
    """It stops in three tenths of its decisions on these rounds, and each number of nodes is the likeliest in some."""
    torch.manual_seed(seed)
    net = PolicyNetwork(K, 16, mlp_size=16, nodes=nodes).eval()
    with torch.no_grad():
        for head in (net.mlp, net.nodes_head):
            torch.nn.init.normal_(head[3].weight, std=2.0)
        logits, sizes = net.both(data.scores, data.mass_by_nodes[..., places(nodes)])
        net.mlp[3].bias[0] -= (logits[..., 0] - logits[..., 1]).quantile(0.7)
        net.nodes_head[3].bias -= sizes.flatten(0, 1).median(0).values
    return net


def rule(data, policy, nodes=NODES):
    """At prices that half of the rounds pay."""
    more = data.mass_by_nodes[..., places(nodes)].diff(dim=-1).flatten(0, 1)
    return NodesByMass(policy, nodes, [0.0, *more.median(0).values.cumsum(0).tolist()])


POLICIES = {
    "rule": lambda data: rule(data, Threshold(0.5)),
    "rule of two numbers": lambda data: rule(data, FixedDepth(5), (4, 32)),
    "network": lambda data: RadarPolicy(network(data)),
    "network of two numbers": lambda data: RadarPolicy(network(data, (16, 32), 3)),
    "rule around one that reads signals": lambda data: rule(data, GammaTune(low=1, calls=6)),
}


def test_ends_by_hand():
    data, costs = made_up(3, 1.0), table()
    ends = Ends(torch.tensor([1, 3, 6]), torch.tensor([2, 0, 1]))
    found = replay_ends(ends, data, costs)
    seconds = [0.5 + 0.125 + 4, 1.5 + 3 * 0.125 + 1, 3.0 + 5 * 0.125 + 2]  # no decision behind the last call
    tokens = [1 + float(data.expected_by_nodes[n, c - 1, s]) for n, (c, s) in enumerate(((1, 2), (3, 0), (6, 1)))]
    assert ends.seconds(data, costs).tolist() == pytest.approx([one + 3.0 + 0.25 for one in seconds])
    assert found.tokens_per_time == pytest.approx(sum(tokens) / (sum(seconds) + 3 * 3.25))
    assert (found.nodes, found.node_histogram) == (pytest.approx((32 + 4 + 16) / 3), {4: 1, 16: 1, 32: 1})
    assert found.mean_acceptance_length == pytest.approx(sum(tokens) / 3)
    assert (found.draft_calls, found.stop_histogram) == (pytest.approx(10 / 3), (1, 0, 1, 0, 0, 1))
    left = replay_ends(Ends(ends.calls), data, costs)  # to the tree
    assert (left.nodes, left.node_histogram) == (4, {4: 3})
    assert Ends(ends.calls).seconds(data, costs).tolist() == pytest.approx([4.625, 5.875, 7.625])
    assert ends.at(torch.tensor([2])).nodes_of(data).tolist() == [16]


def test_only_numbers_that_were_timed_need_a_price():
    data, few = made_up(4), table((1.0, 2.0), NODES[:2])
    calls = torch.tensor([1, 2, 3, 4])
    assert replay_ends(Ends(calls, torch.tensor([0, 1, 1, 0])), data, few).nodes == 10
    with pytest.raises(UsageError, match="measured 4 to 16 nodes, the tree verifies 32"):
        replay_ends(Ends(calls, torch.tensor([0, 1, 2, 0])), data, few)
    dear = table((1.0, 1.0), NODES[:2])
    rows = {one.name: one for one in evaluate({"4": FixedDepth(4)}, made_up(temperature=1.0), dear, reference="4")}
    assert rows[BEST_FIXED].nodes == 16  # 32 would be better still
    assert 4 < rows[KNOWING].nodes <= 16
    assert 4 < rows[HINDSIGHT].nodes <= 16


@pytest.mark.parametrize("name", ["network", "network of two numbers"])
def test_a_network_ends_rounds_as_the_policy_that_serves_it(name, monkeypatch):
    data = made_up()
    policy = POLICIES[name](data)
    ours, theirs = ends_of(policy.network, data), ends_of(policy, data)
    assert torch.equal(ours.calls, theirs.calls)
    assert torch.equal(ours.chosen, theirs.chosen)
    assert len(ours.chosen.unique()) == len(policy.nodes)
    assert set(ours.nodes_of(data).tolist()) == set(policy.nodes)
    monkeypatch.setattr("radar.replay.replay.BATCH", 7)
    in_parts = ends_of(policy.network.train(), data)
    assert policy.network.training
    policy.network.eval()
    assert torch.equal(in_parts.calls, ours.calls)
    assert torch.equal(in_parts.chosen, ours.chosen)
    one = data.truncate(1)
    assert torch.equal(ends_of(policy.network, one).chosen, ends_of(policy, one).chosen)


def test_a_rule_by_hand():
    data, prices = made_up(), [0.0, 1.0, 2.0]
    ends = ends_of(NodesByMass(FixedDepth(2), NODES, prices), data)
    worth = (data.mass_by_nodes[:, 1] - torch.tensor(prices)).tolist()
    assert ends.calls.tolist() == [2] * 60
    assert ends.chosen.tolist() == [row.index(max(row)) for row in worth]
    assert len(set(ends.chosen.tolist())) == 3
    two = ends_of(NodesByMass(FixedDepth(2), (4, 32), [0.0, 2.0]), data)
    assert two.chosen.tolist() == [2 * (row[2] > row[0]) for row in worth]
    with pytest.raises(UsageError, match=r"verifying 5 nodes .* know of \[4, 16, 32\]"):
        ends_of(NodesByMass(FixedDepth(2), (4, 5), [0.0, 0.4]), data)


def test_the_best_fixed_depth_has_the_best_number_of_nodes():
    data = made_up(temperature=1.0)
    costs, free = table((1.0, 1.2, 4.0)), table((1.0, 1.2, 4.0), choice=0.0, decision=0.0)
    speeds = {
        (n, at): replay_ends(Ends(torch.full((60,), n), torch.full((60,), at)), data, free).tokens_per_time
        for n in range(1, CALLS + 1)
        for at in range(3)
    }
    calls, at = max(speeds, key=speeds.get)
    found = tune_fixed(data, costs)
    assert at == 1
    assert (found.value, found.policy.nodes) == (calls, (NODES[at],))
    assert replay(found.policy, data, costs).tokens_per_time == pytest.approx(speeds[calls, at])
    steep = tune_fixed(data, table((1.0, 90.0, 99.0)))
    assert isinstance(steep.policy, FixedDepth)


def test_oracles_choose_nodes_too():
    """One call and four nodes, or all calls and all nodes: what pays is known beforehand."""
    data = made_up(40, 1.0)
    deep = (torch.arange(40) % 2 == 0)[:, None, None]
    corner = torch.zeros(CALLS, 3)
    corner[-1, -1] = CALLS
    expected = torch.where(deep, corner, 0.0)
    data = replace(data, expected_by_nodes=expected, accepted_by_nodes=expected.to(torch.uint8))
    ends = oracle_ends(data, table(), expected)
    assert ends.calls.tolist() == [6, 1] * 20
    assert ends.nodes_of(data).tolist() == [32, 4] * 20
    rows = {one.name: one for one in evaluate({"4": FixedDepth(4)}, data, table(), reference="4")}
    free = table(choice=0.0, decision=0.0)
    assert rows[KNOWING].tokens_per_second == pytest.approx(replay_ends(ends, data, free).tokens_per_time)
    assert rows[HINDSIGHT].tokens_per_second == pytest.approx(rows[KNOWING].tokens_per_second)
    assert (rows[KNOWING].nodes, rows["4"].nodes) == (18, 4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """{temperature: (decoder, prompts, rounds at every token)}."""
    found = {}
    for temperature in (0.0, 1.0):
        folder = tmp_path_factory.mktemp("texts") / "r"
        options = {"max_new_tokens": 50, "temperature": temperature, "every_token": True, "progress": False}
        record(make(4), PROMPTS[:2], folder, **options)
        found[temperature] = read_rounds(folder)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", POLICIES)
def test_replay_of_rounds_at_every_token_is_decoding(texts, name, temperature):
    """Round for round: where each begins, how many calls it makes, how many nodes are verified and what is accepted."""
    data, decoder = texts[temperature], make(4)
    policy = POLICIES[name](data)
    assert data.header.nodes == NODES
    ends = ends_of(policy, data)
    made, nodes, accepted = followed(ends, data), ends.nodes_of(data), ends.pick(data.accepted_by_nodes)
    found = []
    for row in made.nonzero().flatten().tolist():
        calls = int(ends.calls[row])
        drafted = min(int(nodes[row]) - 1, K + (calls - 1) * K * K)  # of so many candidates
        found.append((int(data.prompt[row]), int(data.position[row]), calls, drafted, int(accepted[row])))
    plain = AutoregressiveDecoder(decoder.model, max_length=160)
    decoder.policy, expected = policy, []
    for number, prompt in enumerate(PROMPTS[:2]):
        position, tokens = len(prompt), []
        sampling = SamplingParams(temperature=temperature, seed=number)
        for item in decoder.rounds(prompt, max_new_tokens=50, sampling=sampling):
            if not item.is_prefill and position <= len(prompt) + 50 - 6:  # later ones are not recorded
                expected.append((number, position, item.num_draft_calls, item.num_draft_tokens, item.accept_length))
            position += len(item.tokens)
            tokens += item.tokens
        assert tokens == plain.generate(prompt, max_new_tokens=50, sampling=sampling).token_ids
    assert found == expected
    assert len(found) > 15
    assert len({(calls, drafted) for _, _, calls, drafted, _ in found}) > (1 if name == "rule of two numbers" else 2)
    one = replay(policy, data, table())
    assert one.rounds == len(found)
    assert sum(one.node_histogram.values()) == len(found)
    if temperature == 0:
        assert one.mean_acceptance_length == pytest.approx(1 + sum(row[-1] for row in found) / len(found))


def test_the_served_network_chooses_as_the_trained_one():
    """`RadarPolicy.choose` behind `stop`, level after level, against `PolicyNetwork.both`; padded beams too."""
    data = made_up(40)
    net, scores, mass = network(data), data.scores.clone(), data.mass_by_nodes
    scores[::3, :, 1:] = -torch.inf
    with torch.inference_mode():
        logits, sizes = net.both(scores, mass)
    signals = RoundSignals(torch.full((40,), -1), torch.zeros(40, dtype=torch.int64))
    policy = bound_copy(RadarPolicy(net), signals, TREE)
    policy.reset()
    seen = set()
    for call in range(CALLS):
        stop = policy.stop(scores[:, call].contiguous())
        chosen = policy.choose(mass[:, call])
        assert torch.equal(stop, logits[:, call, 0] > logits[:, call, 1])
        assert torch.equal(chosen, sizes[:, call].argmax(-1))
        seen |= set(chosen.tolist())
    assert seen == {0, 1, 2}
