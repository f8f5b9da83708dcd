"""The whole round as one CUDA graph says what the host-driven round says, again and again."""

import copy
import gc

import pytest
import torch
from fake_graphs import with_fake_graphs
from fakes import FAMILIES, VOCAB, hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.engine.base import choose_engine
from radar.engine.conditional import why_no_while_nodes
from radar.engine.graph import GraphEngine
from radar.policy.baselines import Capped
from radar.policy.baselines_history import GammaTune
from radar.policy.network import PolicyNetwork
from radar.tools.profile import profile_round

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREE = TreeConfig(total_tokens=24, max_calls=6)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Never:
    """A policy that is wrong in the worst way: it never stops."""

    def bind(self, batch_size, tree, device):
        self.no = torch.zeros(batch_size, dtype=torch.bool, device=device)

    def reset(self):
        pass

    def stop(self, scores):
        return self.no


def decoder(model=None, *, policy=None, tree=TREE, engine="graph", seed=0, **options):
    return RadarDecoder(
        model or tiny_target(), draft=tiny_draft(seed=seed), policy=policy or Threshold(), tree=tree, max_length=400,
        engine=engine, **{"fallback": False} | options,
    )  # fmt: skip


def test_the_engine_follows_the_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (choose_engine(None, cpu), choose_engine(None, cuda)) == ("eager", "graph")
    assert choose_engine("eager", cuda) == "eager"
    with pytest.raises(ValueError, match='engine="graph" needs a model on a CUDA device, this one is on cpu'):
        choose_engine("graph", cpu)
    with pytest.raises(ValueError, match="engine must be"):
        choose_engine("fast", cpu)


def test_a_cpu_has_no_while_nodes():
    assert "need a CUDA device" in why_no_while_nodes(torch.device("cpu"))


@pytest.mark.parametrize("policy", [GammaTune(), Capped(GammaTune(), 5)])
def test_a_policy_that_reads_signals_can_be_assigned(policy, monkeypatch):
    """The graph engine tries a copy first, which needs the signals as well."""
    ours = decoder(policy=FixedDepth(3), engine="eager")
    if ours.engine.target.device.type == "cpu":
        ours = with_fake_graphs(monkeypatch, ours)
    else:
        ours = decoder(policy=FixedDepth(3))
    expected = ours.generate(PROMPT, max_new_tokens=20).token_ids
    ours.policy = policy
    assert ours.generate(PROMPT, max_new_tokens=20).token_ids == expected


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_graph_eager_and_generate_say_the_same(family):
    model = tiny_target(family)
    expected = hf_greedy(model, PROMPT, 60)
    plain = AutoregressiveDecoder(model, max_length=400)
    assert plain.engine_name == "graph"
    assert plain.generate(PROMPT, max_new_tokens=60).token_ids == expected
    graph, eager = decoder(model), decoder(model, engine="eager")
    assert graph.engine_name == "graph"
    for policy in (Threshold(), FixedDepth(1), FixedDepth(6), RadarPolicy(PolicyNetwork())):
        graph.policy = eager.policy = policy
        ours, theirs = (d.generate(PROMPT, max_new_tokens=60) for d in (graph, eager))
        assert ours.token_ids == theirs.token_ids == expected
        assert ours.metrics.stop_histogram == theirs.metrics.stop_histogram
        assert ours.metrics.acceptance_histogram == theirs.metrics.acceptance_histogram


@needs_cuda
@pytest.mark.gpu
def test_without_while_nodes_the_host_loops():
    model = tiny_target()
    whole = decoder(model)
    parts = decoder(model)
    with torch.inference_mode():
        parts._kept.made = GraphEngine(parts.engine.target, parts.engine.drafter, Threshold(), TREE, conditional=False)
    assert parts.engine.name == "graphs, host loop"
    a, b = (d.generate(PROMPT, max_new_tokens=60) for d in (whole, parts))
    assert a.token_ids == b.token_ids
    assert a.metrics.stop_histogram == b.metrics.stop_histogram


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("conditional", [True, False])
def test_a_policy_that_never_stops_ends_at_the_cap(conditional):
    ours = decoder(policy=Never())
    if not conditional:
        with torch.inference_mode():
            ours._kept.made = GraphEngine(ours.engine.target, ours.engine.drafter, Never(), TREE, conditional=False)
    out = ours.generate(PROMPT, max_new_tokens=40)
    assert set(out.metrics.stop_histogram) == {TREE.max_calls}


@needs_cuda
@pytest.mark.gpu
def test_sampled_decisions_differ_from_round_to_round():
    policy = RadarPolicy(PolicyNetwork(), sample=True)
    out = decoder(policy=policy, tree=TreeConfig(total_tokens=24, max_calls=8)).generate(PROMPT, max_new_tokens=80)
    assert len(out.metrics.stop_histogram) > 2
    assert out.token_ids == hf_greedy(tiny_target(), PROMPT, 80)


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("conditional", [True, False])
def test_what_a_policy_inside_another_draws_is_new_in_every_round(conditional):
    """RADAR as published: the graph has to know the generator of the policy that the cap holds."""
    model, policy = tiny_target(), Capped(RadarPolicy(PolicyNetwork(), sample=True), 3)
    expected = AutoregressiveDecoder(model, max_length=400).generate(PROMPT, max_new_tokens=80).token_ids
    ours = decoder(model, policy=policy)
    if not conditional:
        with torch.inference_mode():
            ours._kept.made = GraphEngine(ours.engine.target, ours.engine.drafter, policy, TREE, conditional=False)
    captured = ours.engine._current
    assert (ours.engine.why_not_conditional is None) == conditional
    assert captured.policy is policy
    assert ours.engine.generator is captured.bound._bound.generator is not None
    stops, draws = ([], []), set()
    for generation in stops:
        tokens = []
        for item in ours.rounds(PROMPT, max_new_tokens=80):
            # the next round is under way already, so these are its numbers, and the last round's come twice
            draws.add(tuple(captured.bound._bound._draws.flatten().tolist()))
            tokens += item.tokens
            if not item.is_prefill:
                generation.append(item.num_draft_calls)
        assert tokens == expected
    assert len(draws) == len(stops[0]) + len(stops[1])
    assert set(stops[0] + stops[1]) == {1, 2, 3}
    assert stops[0] != stops[1]
    assert ours.engine._current is captured


@needs_cuda
@pytest.mark.gpu
def test_a_thousand_rounds_with_cancelled_streams_and_two_decoders():
    """No growth of memory, no recapture, and the text stays right."""
    model = tiny_target()
    first, second = decoder(model), decoder(model, policy=FixedDepth(3), seed=1)
    prompts = [[(i * 7 + j) % VOCAB for j in range(1 + (i * 13) % 90)] for i in range(12)]
    expected = [first.generate(p, max_new_tokens=50).token_ids for p in prompts]
    assert expected == [second.generate(p, max_new_tokens=50).token_ids for p in prompts]
    torch.cuda.synchronize()
    gc.collect()
    memory, captured = torch.cuda.memory_allocated(), dict(first.engine._captured)
    rounds = 0
    while rounds < 1000:
        for index, prompt in enumerate(prompts):
            cancelled = first.rounds(prompt[::-1], max_new_tokens=30)
            for _ in range(1 + index % 3):
                next(cancelled)  # and never ended
            for one in (first, second):
                out = one.generate(prompt, max_new_tokens=50)
                assert out.token_ids == expected[index]
                rounds += out.metrics.num_spec_steps
    del cancelled
    torch.cuda.synchronize()
    gc.collect()
    assert torch.cuda.memory_allocated() <= memory
    assert first.engine._captured == captured


@needs_cuda
@pytest.mark.gpu
def test_one_policy_object_serves_two_decoders():
    policy = RadarPolicy(PolicyNetwork())
    model = tiny_target()
    first = decoder(model, policy=policy)
    expected = first.generate(PROMPT, max_new_tokens=50)
    decoder(model, policy=policy, seed=1).generate(PROMPT, max_new_tokens=50)
    again = first.generate(PROMPT, max_new_tokens=50)
    assert again.token_ids == expected.token_ids
    assert again.metrics.stop_histogram == expected.metrics.stop_histogram


@needs_cuda
@pytest.mark.gpu
def test_a_policy_that_does_not_fit_is_refused_at_once():
    ours = decoder()
    with pytest.raises(ValueError, match="max_calls"):
        ours.policy = FixedDepth(9)
    assert isinstance(ours.policy, Threshold)


@needs_cuda
@pytest.mark.gpu
def test_the_parts_of_a_round_sum_up():
    ours = decoder(policy=RadarPolicy(PolicyNetwork()))
    profile = profile_round(ours.engine, prefix=100, calls=4, repeats=5)
    assert profile.verify > 0
    assert profile.draft_step > 0
    assert sum(profile.parts().values()) == pytest.approx(profile.whole, rel=1e-6)
    assert ours.generate(PROMPT, max_new_tokens=30).token_ids == hf_greedy(tiny_target(), PROMPT, 30)


@needs_cuda
@pytest.mark.gpu
def test_the_model_is_left_as_it_was():
    model = tiny_target()
    before = hf_greedy(model, PROMPT, 20)
    state = copy.deepcopy(model.state_dict())
    decoder(model).generate(PROMPT, max_new_tokens=20)
    assert hf_greedy(model, PROMPT, 20) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())
