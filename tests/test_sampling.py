"""Sampling: transformers is the judge of what is kept, a chi-square test the judge of how often."""

import math

import pytest
import torch
from test_no_host_sync import NoHostReads
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from radar.config import SamplingParams
from radar.engine.sampler import Sampler
from radar.generation.processing import apply_processors
from radar_kernels import reference_sampling
from radar_kernels.reference_tree import pack_bits

CPU = torch.device("cpu")
FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 5.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 0.31, "temperature": 0.6},
    {"top_p": 0.99},
    {"top_p": 1e-5},
    {"min_p": 0.1},
    {"min_p": 0.9, "temperature": 2.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
    {"top_p": 0.95, "min_p": 0.02, "temperature": 0.7},
]


def sampler_for(vocabulary, **params):
    sampler = Sampler(1, vocabulary, CPU)
    sampler.set(SamplingParams(**{"temperature": 1.0, "seed": 0, **params}))
    return sampler


def warpers(params):
    """What transformers' generate makes of these parameters, in its order."""
    chain = LogitsProcessorList()
    if "logit_bias" in params:
        chain.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in params["logit_bias"].items()}))
    if "repetition_penalty" in params:
        chain.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    chain.append(TemperatureLogitsWarper(params.get("temperature", 1.0)))
    if params.get("top_k"):
        chain.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        chain.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        chain.append(MinPLogitsWarper(params["min_p"]))
    return chain


def assert_as_transformers(scores, expected):
    assert torch.equal(scores.isfinite(), expected.isfinite()), "another set of tokens is kept"
    assert expected.isfinite().any(-1).all()
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("params", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_filters_keep_what_transformers_keeps(params, spread):
    logits = torch.randn(1, 60, 701) * spread
    scores = reference_sampling.filter_logits(logits, sampler_for(701, **params).state)
    assert_as_transformers(scores[0], warpers(params)(torch.zeros(60, 1, dtype=torch.int64), logits[0]))


def test_ties_with_the_kth_token_are_kept_as_transformers_keeps_them():
    logits = torch.randint(-4, 5, (1, 60, 200)).float()
    for k in (1, 3, 50):
        scores = reference_sampling.filter_logits(logits, sampler_for(200, top_k=k).state)
        assert_as_transformers(scores[0], TopKLogitsWarper(k)(None, logits[0]))


@pytest.mark.parametrize("params", [{"temperature": 0.9}, {"temperature": 1.1}])
def test_the_comparison_with_transformers_can_fail(params):
    logits = torch.randn(1, 20, 300)
    scores = reference_sampling.filter_logits(logits, sampler_for(300, top_p=0.9).state)
    with pytest.raises(AssertionError):
        assert_as_transformers(scores[0], warpers({"top_p": 0.9, **params})(None, logits[0]))
    with pytest.raises(AssertionError, match="another set"):
        assert_as_transformers(scores[0], warpers({"top_p": 0.91})(None, logits[0]))


def tree(nodes, vocabulary):
    """A random tree: tokens, parents [1, N], words, and each node's path as a list of node indices."""
    parents, paths = [0], [[0]]
    for node in range(1, nodes):
        parents.append(int(torch.randint(node, ())))
        paths.append([*paths[parents[-1]], node])
    reach = torch.zeros(1, nodes, nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        reach[0, node, path] = True
    return torch.randint(vocabulary, (1, nodes)), torch.tensor([parents]), pack_bits(reach), paths


@pytest.mark.parametrize("nodes", [1, 12, 70])
@pytest.mark.parametrize("params", [{}, {"logit_bias": {3: 4.0, 7: -2.5, 1: 1.5}}, {"top_k": 9, "temperature": 0.8}])
def test_the_penalty_counts_a_nodes_own_path(nodes, params):
    params = {"repetition_penalty": 1.8, **params}
    vocabulary, text = 60, [5, 9, 9, 31, 59]
    logits = torch.randn(1, nodes, vocabulary) * 3
    tokens, _, words, paths = tree(nodes, vocabulary)
    sampler = sampler_for(vocabulary, **params)
    sampler.start(torch.tensor([text[:2]]))
    sampler.commit(torch.tensor([[*text[2:], 0]]), torch.tensor([3]))  # the 0 does not count
    scores = reference_sampling.filter_logits(logits, sampler.state, tokens, words)[0]
    chain = warpers(params)
    for node, path in enumerate(paths):
        ids = torch.tensor([text + tokens[0, path].tolist()])
        assert_as_transformers(scores[node][None], chain(ids, logits[0, node][None].clone()))
    sampler.start(torch.tensor([[0]]))  # another text: nothing of the first one is left
    seen = reference_sampling.history(sampler.state, vocabulary, None, None)
    assert seen.nonzero().tolist() == [[0, 0, 0]]


def test_processors_see_each_nodes_own_path():
    tokens, parents, words, paths = tree(9, 40)
    logits = torch.randn(2, 9, 40)
    texts = [[3, 4], [5]]
    calls = []

    def spy(ids, scores):
        calls.append(ids[0].tolist())
        return scores + 1

    processed = apply_processors(
        [RepetitionPenaltyLogitsProcessor(1.5), spy], logits, texts, tokens.expand(2, -1), parents.expand(2, -1)
    )
    assert calls == [text + tokens[0, path].tolist() for text in texts for path in paths]
    for row, text in enumerate(texts):
        sampler = sampler_for(40, repetition_penalty=1.5)
        sampler.start(torch.tensor([text]))
        expected = reference_sampling.filter_logits(logits[row][None], sampler.state, tokens, words)[0]
        torch.testing.assert_close(processed[row], expected + 1)


SEEDS = 20_000


def chi_square(tokens, probabilities):
    """(statistic - degrees) / sqrt(2 degrees): about normal, so that over 5 is an error."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0, "a token of probability 0 was sampled"
    likely = probabilities * len(tokens) >= 5
    counts = torch.cat((counts[likely], counts[~likely].sum()[None]))
    expected = torch.cat((probabilities[likely], probabilities[~likely].sum()[None])).double() * len(tokens)
    counts, expected = (part[expected > 0] for part in (counts, expected))
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees).item() / math.sqrt(2 * degrees)


def sample_over_seeds(logits, position=11, **params):
    state = Sampler(SEEDS, len(logits), CPU)
    state.set(SamplingParams(**{"temperature": 1.0, **params}))
    state.state.seed.copy_(torch.arange(SEEDS))
    positions = torch.full((SEEDS, 1), position)
    return state.sample(logits.expand(SEEDS, 1, -1), positions)[:, 0]


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_k": 6}, {"min_p": 0.1}], ids=str)
def test_frequencies_are_the_probabilities(params):
    logits = torch.randn(53) * 1.5
    probabilities = warpers(params)(None, logits[None].clone())[0].softmax(-1)
    assert abs(chi_square(sample_over_seeds(logits, **params), probabilities)) < 5
    wrong = (logits / (params.get("temperature", 1.0) * 1.1))[None]
    wrong = wrong.masked_fill(probabilities == 0, -torch.inf)[0].softmax(-1)
    assert chi_square(sample_over_seeds(logits, **params), wrong) > 5, "a temperature 10 % off is not noticed"


def test_frequencies_over_the_positions_of_one_text():
    logits = torch.randn(53) * 1.5
    sampler = sampler_for(53, seed=123)
    tokens = sampler.sample(logits.expand(1, SEEDS, -1), torch.arange(SEEDS)[None])[0]
    assert abs(chi_square(tokens, logits.softmax(-1))) < 5
    pairs = tokens[:-1:2] * 53 + tokens[1::2]  # neighbours are independent
    both = (logits.softmax(-1)[:, None] * logits.softmax(-1)).flatten()
    assert abs(chi_square(pairs, both)) < 5


def test_noise_shared_by_two_tokens_is_noticed(monkeypatch):
    right = reference_sampling.uniforms
    logits = torch.randn(53) * 0.3

    def shared(seed, positions, vocabulary):
        u = right(seed, positions, vocabulary)
        u[..., 1::2] = u[..., :-1:2]
        return u

    assert abs(chi_square(sample_over_seeds(logits), logits.softmax(-1))) < 5
    monkeypatch.setattr(reference_sampling, "uniforms", shared)
    assert chi_square(sample_over_seeds(logits), logits.softmax(-1)) > 5


def test_the_tree_and_the_chain_choose_the_same_token():
    """The promise: a token depends on the target's scores, the seed, the index and the text, on no tree."""
    vocabulary, text = 500, [1, 2, 3]
    tokens, _, words, paths = tree(40, vocabulary)
    logits = torch.randn(1, 40, vocabulary) * 2
    params = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 77}
    in_tree = sampler_for(vocabulary, **params)
    in_tree.start(torch.tensor([text]))
    depths = torch.tensor([[len(path) - 1 for path in paths]])
    chosen = in_tree.sample(logits, len(text) + depths + 1, tokens, words)
    for node, path in enumerate(paths):
        alone = sampler_for(vocabulary, **params)
        alone.start(torch.tensor([text + tokens[0, path].tolist()]))
        one = alone.sample(logits[:, node : node + 1], torch.tensor([[len(text) + len(path)]]))
        assert one.item() == chosen[0, node]


def test_sampling_asks_nothing_of_the_host():
    tokens, _, words, _ = tree(6, 80)
    sampler = sampler_for(80, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2, logit_bias={1: 2.0})
    with NoHostReads():
        sampler.start(tokens)
        sampler.sample(torch.randn(1, 6, 80), torch.arange(6)[None], tokens, words)
        sampler.commit(tokens, torch.tensor([2]))
