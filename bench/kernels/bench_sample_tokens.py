"""Sampling the tokens of a whole tree against softmax, sort and multinomial.

pytest bench/kernels/bench_sample_tokens.py --benchmark-only

Predicted for 60 x 128,256 in bfloat16 on an H200 (15.4 MB, 3.7 us at full bandwidth; the logits are in the cache),
three launches, of which the middle one does nothing for rows without filters: greedy 12 us (one reading pass);
temperature alone 20 us (Philox with wide products, two one-instruction logarithms: 31 instructions a token); top-k 50
25 us (every block finds the bound in the segments' maxima, few blocks are read again, two passes over one tile of
listed tokens); top-p 0.9 at temperature 0.7 30 us (these flat logits leave candidates in every block: a tenth of the
row is listed, with noise, then two or three passes over three tiles).
"""

import pytest
import torch

from bench.conftest import ON_GPU
from bench.shapes import LLAMA_8B, TINY
from radar_kernels import SamplingState, reference_sampling, sample_tokens

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top_k 50": {"temperature": 1.0, "top_k": 50},
    "top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
}
if ON_GPU:
    DTYPE = torch.bfloat16
    IMPLEMENTATIONS = ["torch", "triton"]
    CASES = [(60, LLAMA_8B.vocabulary), (1, LLAMA_8B.vocabulary)]
else:
    DTYPE = torch.float32
    IMPLEMENTATIONS = ["torch", "reference"]
    CASES = [(60, TINY.vocabulary)]


def state_of(vocabulary, device, temperature, top_k=0, top_p=1.0):
    one = torch.ones(1, device=device)
    return SamplingState(
        seed=one.long(), temperature=one * temperature, top_k=(one * top_k).int(), top_p=one * top_p, min_p=one * 0,
        repetition_penalty=one, biased=one == 0, logit_bias=torch.zeros(1, vocabulary, device=device),
        seen=torch.zeros(1, -(-vocabulary // 32), dtype=torch.int32, device=device),
    )  # fmt: skip


def chain(setting):
    """What a sampling loop in PyTorch does, with the filters known on the host."""

    def call(logits, positions, state):
        if setting["temperature"] == 0:
            return logits.argmax(-1)
        scores = logits[0].float() / setting["temperature"]
        if "top_k" in setting:
            last = scores.topk(setting["top_k"], -1).values[:, -1:]
            scores = scores.masked_fill(scores < last, -torch.inf)
        if "top_p" in setting:
            value, token = scores.sort(-1)
            drop = value.softmax(-1).cumsum(-1) <= 1 - setting["top_p"]
            scores = scores.masked_fill(drop.scatter(1, token, drop), -torch.inf)
        return (scores.softmax(-1) / torch.empty_like(scores).exponential_()).argmax(-1)[None]

    return call


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize(("rows", "vocabulary"), CASES, ids=[f"{rows}x{v}" for rows, v in CASES])
def test_sample_tokens(rows, vocabulary, setting, implementation, device, bench_kernel):
    state = state_of(vocabulary, device, **setting)
    positions = torch.arange(rows, device=device)[None]

    def make():
        return (3 * torch.randn(1, rows, vocabulary, device=device)).to(DTYPE), positions, state

    inputs = [make() for _ in range(2)]  # the logits were just written: they are in the cache
    call = {"torch": chain(setting), "triton": sample_tokens, "reference": reference_sampling.sample_tokens}[
        implementation
    ]
    got, expected = call(*inputs[0]), reference_sampling.sample_tokens(*inputs[0])
    if implementation == "torch" and setting["temperature"] > 0:
        # noise of its own: only the kept set can be checked, where the sort may have kept other ties at the border
        kept = reference_sampling.filter_logits(inputs[0][0], state).isfinite()
        assert kept.gather(-1, got[..., None]).float().mean() > 0.9
    else:
        assert (got != expected).sum() <= rows // 60  # two tokens within rounding of each other may change places
    bench_kernel(call, inputs, bytes_moved=rows * vocabulary * DTYPE.itemsize)
