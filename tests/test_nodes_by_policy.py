"""A policy that says how many nodes are verified: whatever it says, the text is that of decoding without drafts."""

import functools

import choosing
import pytest
import torch
from choosing import PROMPT, SAMPLED, rounds_of
from decoders import make
from fake_graphs import fake_conditions, fake_graphs, with_fake_graphs
from fakes import VOCAB, tiny_draft, tiny_target
from rows_decoders import PROMPTS, TREE

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.engine import build
from radar.engine.fallback import Fallback
from radar.errors import UsageError
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork

NODES = (2, 9, 40)  # of a tree of 20 in 8 calls: fewer, fewer and more
LONG = 170  # tokens; a cache on a CPU is read in windows of 128 rows
ENGINES = ["eager", "host loop", "conditional"]


class Turns(choosing.Turns):
    """Another number in every round, and a note of what it was shown."""

    def __init__(self, calls=4, nodes=NODES):
        super().__init__(calls, nodes)
        self.seen = []

    def choose(self, mass):
        self.seen.append(mass.tolist())
        return super().choose(mass)


@functools.cache
def plain():
    return AutoregressiveDecoder(tiny_target(), max_length=400, engine="eager")


def ours(engine, monkeypatch, policy, fallback=None, **options):
    options = {"engine": "eager", "fallback": engine == "eager" and fallback is not None, "max_length": 400} | options
    decoder = make(policy, **options)
    if engine == "eager":
        return decoder
    return with_fake_graphs(monkeypatch, decoder, fallback, conditional=engine == "conditional")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_text_is_that_of_plain_decoding_whatever_came_before(engine, monkeypatch):
    """Greedy, sampled and greedy again, short and beyond the first window of the cache."""
    decoder = ours(engine, monkeypatch, Turns())
    for sampling, length in ((None, 20), (SAMPLED, LONG), (None, LONG), (SAMPLED, 20)):
        options = {"max_new_tokens": length, **({"sampling": sampling} if sampling else {})}
        tokens, rounds = rounds_of(decoder, **options)
        assert tokens == plain().generate(PROMPT, **options).token_ids
        assert {drafted for _, drafted in rounds} == {n - 1 for n in NODES}
        assert [drafted + 1 for _, drafted in rounds[:4]] != [drafted + 1 for _, drafted in rounds[1:5]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("calls", [1, 3, 8])
def test_a_choice_is_by_the_tree_that_drafting_left(engine, calls, monkeypatch):
    """The mass is that of the best nodes of all levels, of which there are as many as calls: at the bound too."""
    policy = Turns(calls)
    decoder, found = ours(engine, monkeypatch, policy), []
    policy.seen.clear()
    for one in decoder.rounds(PROMPT, max_new_tokens=30):
        if one.is_prefill:
            policy.seen.clear()
            continue
        scores = decoder.engine.drafter.tree.scores[0]
        best = scores[scores > -torch.inf].exp().sort(descending=True).values
        found.append([[float(best[: n - 1].sum()) for n in NODES]])
        assert one.num_draft_calls == calls
    shown = policy.seen[: len(found)]
    if engine == "eager":  # elsewhere the next round is on its way when the one before is read
        assert len(found) > 5
        for seen, expected in zip(shown, found, strict=True):
            assert seen[0] == pytest.approx(expected[0], rel=1e-5)
    assert all(seen[0][0] < seen[0][1] for seen in shown)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_choose_alike(engine, monkeypatch):
    torch.manual_seed(5)
    network = PolicyNetwork(nodes=NODES)
    for head in (network.mlp, network.nodes_head):
        torch.nn.init.normal_(head[3].weight, std=2.0)
    found = {}
    for name, policy in {
        "network": RadarPolicy(network.eval()),
        "rule": NodesByMass(Threshold(0.3), NODES, [0.0, 0.3, 0.35]),
        "drawn": RadarPolicy(network.eval(), sample=True),
    }.items():
        tokens, rounds = rounds_of(ours(engine, monkeypatch, policy), max_new_tokens=120)
        assert tokens == plain().generate(PROMPT, max_new_tokens=120).token_ids
        assert len(set(rounds)) > 3, name
        if engine != "eager" and name != "drawn":  # captures have drawn before
            assert rounds == rounds_of(ours("eager", monkeypatch, policy), max_new_tokens=120)[1], name
        found[name] = rounds
    assert found["network"] != found["rule"]


@pytest.mark.parametrize("engine", ENGINES)
def test_another_policy_can_be_assigned(engine, monkeypatch):
    decoder = ours(engine, monkeypatch, Turns())
    expected = plain().generate(PROMPT, max_new_tokens=40).token_ids
    for policy, numbers in ((FixedDepth(4), {20}), (Turns(nodes=(5, 30)), {5, 30}), (Turns(nodes=(7,)), {7})):
        decoder.policy = policy
        tokens, rounds = rounds_of(decoder, max_new_tokens=40)
        assert tokens == expected
        assert {drafted + 1 for _, drafted in rounds} == numbers


@pytest.mark.parametrize("engine", ENGINES)
def test_log_probabilities_are_the_models(engine, monkeypatch):
    decoder = ours(engine, monkeypatch, Turns())
    for options in ({}, {"sampling": SAMPLED}):
        one, other = (d.generate(PROMPT, max_new_tokens=40, logprobs=3, **options) for d in (decoder, plain()))
        assert one.token_ids == other.token_ids
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.token == theirs.token
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert dict(mine.top) == pytest.approx(dict(theirs.top), abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_plain_steps_come_between(engine, monkeypatch):
    """A fallback that drafts in every third round leaves pairs that wait for the next choice."""
    asked = [0]

    def drafts(self):
        asked[0] += 1
        return asked[0] % 3 == 0

    monkeypatch.setattr(Fallback, "drafts", property(drafts))
    decoder = ours(engine, monkeypatch, Turns(), Fallback())
    out = decoder.generate(PROMPT, max_new_tokens=60)
    assert out.token_ids == plain().generate(PROMPT, max_new_tokens=60).token_ids
    assert out.metrics.num_fallback_tokens > 5
    assert out.metrics.num_spec_steps > 5


@pytest.mark.parametrize("engine", ENGINES)
def test_processors_on_the_host_go_with_the_trees_own_number(engine, monkeypatch):
    policy = Turns()

    def forbids(ids, scores):
        scores[:, ids[0, -1]] = -torch.inf
        return scores

    decoder, options = ours(engine, monkeypatch, policy), {"max_new_tokens": 40, "logits_processor": [forbids]}
    expected = plain().generate(PROMPT, **options).token_ids
    policy.seen.clear()
    tokens, rounds = rounds_of(decoder, **options)
    assert tokens == expected
    assert {drafted + 1 for _, drafted in rounds} == {20}
    assert policy.seen == []
    without = plain().generate(PROMPT, max_new_tokens=40).token_ids
    assert decoder.generate(PROMPT, max_new_tokens=40).token_ids == without != expected


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_does_not_ask(engine, monkeypatch):
    """Not when one text is left either: rows have pages for the tree's own number. All texts are as by themselves."""
    if engine != "eager":
        fake_graphs(monkeypatch)
    if engine == "conditional":
        fake_conditions(monkeypatch)
    monkeypatch.setattr(build, "choose_engine", lambda *_: "eager" if engine == "eager" else "graph")
    policy = Turns(3)
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=policy, tree=TREE, fallback=False, max_length=100, max_batch_size=3
    )
    lengths = [12, 20, 60]
    expected = [plain().generate(p, max_new_tokens=n).token_ids for p, n in zip(PROMPTS, lengths, strict=False)]
    texts = [decoder.rounds(p, max_new_tokens=n) for p, n in zip(PROMPTS, lengths, strict=False)]
    policy.seen.clear()
    found = [[] for _ in texts]
    waiting = list(zip(texts, found, strict=True))
    while waiting:
        for text, tokens in list(waiting):
            item = next(text, None)
            if item is None:
                waiting.remove((text, tokens))
            else:
                tokens.append(item)
    assert [[token for item in items for token in item.tokens] for items in found] == expected
    drafted = {item.num_draft_tokens + 1 for item in found[2] if not item.is_prefill}
    assert max(drafted) == TREE.total_tokens
    assert policy.seen == []


def test_more_nodes_than_there_is_room_for_are_refused():
    decoder = make(FixedDepth(3), engine="eager", tree=TreeConfig(total_tokens=20, max_calls=4))
    room = decoder.engine.target.max_rows
    decoder.policy = Turns(nodes=(4, room))
    for nodes in ((4, room + 1), (room + 1,)):
        with pytest.raises(UsageError, match=rf"may verify {room + 1} nodes, and there is room for {room}: make .*"):
            decoder.policy = Turns(nodes=nodes)
    assert decoder.policy.nodes == (4, room)
    assert len(decoder.generate(PROMPT, max_new_tokens=9).token_ids) == 9
    with pytest.raises(UsageError, match=r"TreeConfig\(total_tokens=256\)"):
        make(Turns(nodes=(4, 257)), engine="eager").generate([VOCAB - 1])
