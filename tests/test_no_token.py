"""Scores that are not numbers, at the sampler: the shortcut of greedy decoding and sampling follow one rule."""

import pytest
import torch
from fakes import DEVICE

from radar.config import SamplingParams
from radar.engine.sampler import Sampler
from radar_kernels import NO_TOKEN

INF = float("inf")


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.2}])
def test_rows_without_a_token_are_told_from_rows_with_one(params):
    sampler = Sampler(1, 40, DEVICE)
    sampler.set(SamplingParams(**params))
    sampler.start(torch.tensor([[1, 2]], device=DEVICE))
    logits = torch.randn(1, 5, 40, device=DEVICE)
    logits[0, 0, 39], logits[0, 1, 0], logits[0, 2], logits[0, 3, 1:] = float("nan"), INF, -INF, -INF
    tokens = sampler.sample(logits, torch.arange(5, device=DEVICE)[None])
    assert tokens[0, :4].tolist() == [NO_TOKEN, NO_TOKEN, NO_TOKEN, 0]
    assert tokens[0, 4] >= 0
    before = sampler.state.seen.clone()
    sampler.commit(tokens[:, :3], torch.tensor([3], device=DEVICE))
    assert torch.equal(sampler.state.seen, before)
