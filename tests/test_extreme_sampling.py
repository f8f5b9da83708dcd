"""Any positive temperature, penalty and share: what transformers' processors say where they are finite, and a token."""

import pytest
import torch
from fakes import DEVICE
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from radar.config import SamplingParams
from radar.engine.sampler import Sampler
from radar_kernels import sample_tokens
from radar_kernels.reference_sampling import filter_logits

VOCAB, ROWS = 300, 6
TEXT = torch.tensor([[3, 250, 7, 3]], device=DEVICE)
LOGITS = (torch.randn(1, ROWS, VOCAB, generator=torch.Generator().manual_seed(1)) * 4).to(DEVICE)
CASES = {
    "1e-5": {"temperature": 1e-5},
    "least": {"temperature": 1e-37, "top_k": 40, "top_p": 0.9},
    "1e-20 with ties": {"temperature": 1e-20, "min_p": 0.5},
    "most": {"temperature": 1e37, "top_p": 0.5},
    "1e5": {"temperature": 1e5, "top_k": 30, "min_p": 0.1},
    "no share": {"temperature": 1.0, "top_p": 0.0},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1e8},
    "rewards": {"temperature": 0.7, "repetition_penalty": 1e-8},
}


def logits_of(name):
    logits = LOGITS.clone()
    if "ties" in name:
        logits[..., 40] = logits[..., 90] = logits.amax(-1)
    return logits


def sampler_of(params):
    sampler = Sampler(1, VOCAB, DEVICE)
    sampler.set(SamplingParams(seed=5, **params))
    sampler.start(TEXT)
    return sampler


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_transformers(name):
    params = CASES[name]
    chain = LogitsProcessorList()
    for argument, kind in (
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor), ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper),
    ):  # fmt: skip
        if argument in params:
            chain.append(kind(params[argument]))
    found = filter_logits(logits_of(name), sampler_of(params).state)[0]
    expected = chain(TEXT.expand(ROWS, -1), logits_of(name)[0].clone())
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-6, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_a_token_that_is_kept_is_chosen(name, backend):
    logits = logits_of(name)
    state = sampler_of(CASES[name]).state
    positions = torch.arange(ROWS, device=DEVICE)[None] + 4
    tokens = sample_tokens(logits, positions, state, backend=backend)
    assert torch.equal(tokens, sample_tokens(logits, positions, state, backend="torch"))
    kept = filter_logits(logits, state).gather(-1, tokens[..., None])
    assert bool((kept > -torch.inf).all())
    if CASES[name]["temperature"] < 1e-4:
        assert torch.equal(logits.gather(-1, tokens[..., None])[..., 0], logits.amax(-1))


def test_what_ties_at_the_lowest_temperature_is_sampled():
    """Greedy takes the lower token; a temperature, however low, does not tell equal scores apart."""
    state = sampler_of(CASES["1e-20 with ties"]).state
    positions = torch.arange(200, device=DEVICE)[None]
    logits = logits_of("ties")[:, :1].expand(1, 200, VOCAB)
    counts = torch.bincount(sample_tokens(logits, positions, state)[0], minlength=VOCAB)
    best = (logits[0, 0] == logits[0, 0].amax()).nonzero()[:, 0]
    assert len(best) >= 2
    assert int(counts[best].sum()) == 200
    assert int(counts[best].min()) > 30
