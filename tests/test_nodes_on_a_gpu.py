"""A choice of nodes inside of CUDA graphs: texts, rounds and log-probabilities are those of the engine without them."""

import gc

import pytest
import torch
from choosing import NODES, PROMPT, SAMPLED, Turns, rounds_of
from fakes import FAMILIES, hf_greedy, tiny_draft, tiny_target
from rows_decoders import PROMPTS

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.engine.graph import GraphEngine
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork
from radar.tools.profile import profile_round

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"), pytest.mark.gpu]

TREE = TreeConfig(total_tokens=24, max_calls=6)


def network(**options):
    torch.manual_seed(1)
    net = PolicyNetwork(nodes=NODES)
    for head in (net.mlp, net.nodes_head):
        torch.nn.init.normal_(head[3].weight, std=2.0)
    return RadarPolicy(net.eval(), **options)


def rule():
    return NodesByMass(Threshold(0.3), NODES, [0.0, 0.68, 1.13, 1.54])


def decoder(model=None, *, policy, engine="graph", **options):
    """`engine`: "graph", "host loop" or "eager"."""
    ours = RadarDecoder(
        model or tiny_target(), draft=tiny_draft(), policy=policy, tree=TREE, max_length=500,
        engine="eager" if engine == "eager" else "graph", **{"fallback": False} | options,
    )  # fmt: skip
    if engine == "host loop":
        with torch.inference_mode():
            ours._kept.made = GraphEngine(ours.engine.target, ours.engine.drafter, policy, TREE, conditional=False)
    return ours


@pytest.mark.parametrize("engine", ["graph", "host loop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_that_of_plain_decoding_with_all_numbers_of_nodes(engine, family):
    model = tiny_target(family)
    ours, plain = decoder(model, policy=Turns(), engine=engine), AutoregressiveDecoder(model, max_length=500)
    assert (ours.engine.why_not_conditional is None) == (engine == "graph")
    for options in ({}, {"sampling": SAMPLED}, {}):
        tokens, rounds = rounds_of(ours, max_new_tokens=300, **options)
        assert tokens == plain.generate(PROMPT, max_new_tokens=300, **options).token_ids
        assert {drafted + 1 for _, drafted in rounds} == set(NODES)
        assert {calls for calls, _ in rounds} == {4}
    assert rounds_of(ours, max_new_tokens=60)[0] == hf_greedy(model, PROMPT, 60)


@pytest.mark.parametrize("engine", ["graph", "host loop"])
@pytest.mark.parametrize("make", [network, rule])
def test_rounds_are_those_of_the_host(engine, make):
    """As deep, and with as many nodes: the choice is by the same tree and the same state."""
    ours, theirs = decoder(policy=make(), engine=engine), decoder(policy=make(), engine="eager")
    found, expected = (rounds_of(one, max_new_tokens=200) for one in (ours, theirs))
    assert found == expected
    assert len({drafted for _, drafted in found[1]}) > 1


@pytest.mark.parametrize("engine", ["graph", "host loop"])
def test_drawn_stops_and_choices_leave_the_text_as_it_is(engine):
    ours = decoder(policy=network(sample=True), engine=engine)
    tokens, rounds = rounds_of(ours, max_new_tokens=120)
    assert tokens == hf_greedy(tiny_target(), PROMPT, 120)
    assert len({calls for calls, _ in rounds}) > 1


@pytest.mark.parametrize("engine", ["graph", "host loop"])
def test_log_probabilities_are_those_of_plain_decoding(engine):
    ours, plain = decoder(policy=Turns(), engine=engine), AutoregressiveDecoder(tiny_target(), max_length=500)
    for options in ({}, {"sampling": SAMPLED}):
        one, other = (d.generate(PROMPT, max_new_tokens=60, logprobs=3, **options) for d in (ours, plain))
        assert one.token_ids == other.token_ids
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.token == theirs.token
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert dict(mine.top) == pytest.approx(dict(theirs.top), abs=1e-3)


def test_policies_come_and_go_and_nothing_is_left():
    """Each has graphs of its own, of which the oldest are let go; cancelled texts leave rounds under way."""
    ours, expected = decoder(policy=FixedDepth(4)), hf_greedy(tiny_target(), PROMPT, 50)
    policies = [Turns(), FixedDepth(3), rule(), network(), Turns(2, (5, 30))]
    memory = []
    for _ in range(3):
        for policy in policies:
            ours.policy = policy
            next(ours.rounds(PROMPT[::-1], max_new_tokens=30))  # and never ended
            assert ours.generate(PROMPT, max_new_tokens=50).token_ids == expected
        torch.cuda.synchronize()
        gc.collect()
        memory.append(torch.cuda.memory_allocated())
    assert memory[2] <= memory[1]


def test_rows_that_share_a_verification_do_not_ask():
    model = tiny_target()
    ours = decoder(model, policy=Turns(), max_batch_size=3)
    plain, lengths = AutoregressiveDecoder(model, max_length=500), (20, 40, 90)
    texts = [ours.rounds(p, max_new_tokens=n) for p, n in zip(PROMPTS[2:5], lengths, strict=True)]
    found, waiting = [[] for _ in texts], [0, 1, 2]
    while waiting:
        for place in list(waiting):
            item = next(texts[place], None)
            found[place] += [] if item is None else item.tokens
            if item is None:
                waiting.remove(place)
    assert found == [plain.generate(p, max_new_tokens=n).token_ids for p, n in zip(PROMPTS[2:5], lengths, strict=True)]


def test_a_fallback_takes_plain_steps_between():
    ours = decoder(policy=Turns(), fallback=True)
    for length in (40, 120):
        assert ours.generate(PROMPT, max_new_tokens=length).token_ids == hf_greedy(tiny_target(), PROMPT, length)


def test_a_choice_takes_time_and_other_numbers_can_be_timed():
    ours = decoder(policy=network())
    profile = profile_round(ours.engine, prefix=100, calls=4, repeats=5)
    assert profile.choice > 0
    assert sum(profile.parts().values()) == pytest.approx(profile.whole, rel=1e-6)
    assert profile_round(ours.engine, prefix=100, calls=1, repeats=5, nodes=60).nodes == 60
    assert ours.generate(PROMPT, max_new_tokens=30).token_ids == hf_greedy(tiny_target(), PROMPT, 30)
