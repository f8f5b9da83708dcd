"""The sampler's parameters: set in place, checked, kept, and asking nothing of the host."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch

from radar.config import MOST_BIAS, SamplingParams
from radar.engine.sampler import Sampler

CPU = torch.device("cpu")


def sampler_for(vocabulary, **params):
    sampler = Sampler(1, vocabulary, CPU)
    sampler.set(SamplingParams(**{"temperature": 1.0, "seed": 0, **params}))
    return sampler


def test_parameters_change_in_place_and_seeds_are_reported():
    sampler = Sampler(2, 100, CPU)
    assert sampler.is_greedy
    storage = [tensor.data_ptr() for tensor in sampler.state]
    logits, positions = torch.randn(2, 3, 100), torch.arange(6).view(2, 3)
    assert torch.equal(sampler.sample(logits, positions), logits.argmax(-1))
    sampler.set(SamplingParams(temperature=1.0))
    drawn = sampler.seed
    first = sampler.sample(logits, positions)
    sampler.set(SamplingParams(temperature=1.0))
    assert sampler.seed != drawn
    sampler.set(SamplingParams(temperature=1.0, seed=drawn))
    assert torch.equal(sampler.sample(logits, positions), first)
    sampler.set(SamplingParams(logit_bias={42: 1000.0}))
    assert not sampler.is_greedy
    assert (sampler.sample(logits, positions) == 42).all()
    sampler.set(SamplingParams(logit_bias={7: 500.0}))
    assert (sampler.sample(logits, positions) == 7).all(), "the bias before is still there"
    sampler.set(SamplingParams())
    assert torch.equal(sampler.sample(logits, positions), logits.argmax(-1)), "the bias before is still there"
    sampler.set(SamplingParams(repetition_penalty=1.2))
    assert not sampler.is_greedy
    assert [tensor.data_ptr() for tensor in sampler.state] == storage


def test_the_last_seed_of_the_range_fits():
    sampler = sampler_for(50, seed=2**63 - 1)
    assert sampler.state.seed.tolist() == [2**63 - 1]


BAD = [
    ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or from 1e-37 to 1e37, got -1.0"),
    ({"temperature": math.nan}, "temperature must be"),
    ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
    ({"top_p": -0.1}, r"top_p must be from 0 to 1 \(off\), got -0.1"),
    ({"top_p": 1.1}, "top_p must be"),
    ({"top_k": -1}, "top_k must be an integer from 0"),
    ({"top_k": 2.0}, "top_k must be an integer from 0"),
    ({"min_p": 1.5}, r"min_p must be from 0 \(off\) to 1, got 1.5"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be from 1e-8 to 1e8"),
    ({"seed": -1}, r"seed must be None or an integer from 0 to 2\*\*63 - 1, got -1"),
    ({"seed": 2**63}, "seed must be"),
    ({"logit_bias": {-1: 0.0}}, "logit_bias must map token ids"),
    ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 must be a number of at most 1e.30 either way, or -inf to"),
    ({"logit_bias": {1: 1e31}}, "logit_bias of token 1 must be"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 must be"),
]


@pytest.mark.parametrize(("params", "message"), BAD, ids=str)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(ValueError, match=f"SamplingParams: {message}"):
        SamplingParams(**params)


@pytest.mark.parametrize("params", [{}, {"temperature": 1e-37, "repetition_penalty": 1e8}, {"temperature": 0.5}])
def test_the_largest_bias_forces_its_token(params):
    sampler = sampler_for(80, logit_bias={42: MOST_BIAS, 43: -MOST_BIAS}, **params)
    tokens = sampler.sample(torch.randn(1, 30, 80), torch.arange(30)[None])
    assert tokens.unique().tolist() == [42]


def test_parameters_can_be_kept_sent_and_compared():
    params = SamplingParams(temperature=0.5, logit_bias={3: 1.0})
    for other in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert other == params
        assert hash(other) == hash(params)
    assert dataclasses.asdict(params)["logit_bias"] == {3: 1.0}
    given = {3: 1.0}
    kept = SamplingParams(logit_bias=given)
    given[3] = 2.0
    assert kept.logit_bias == {3: 1.0}


def test_a_bias_outside_the_vocabulary_is_refused_and_changes_nothing():
    sampler = sampler_for(50, seed=3)
    with pytest.raises(ValueError, match="logit_bias names token 50, but the vocabulary ends at 49"):
        sampler.set(SamplingParams(logit_bias={50: 1.0}))
    assert sampler.seed == 3
