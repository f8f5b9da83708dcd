"""Sampling the tokens of a whole tree against softmax, sort and multinomial.

pytest bench/kernels/bench_sample_tokens.py --benchmark-only

Predicted for 60 x 128,256 in bfloat16 on an H200 (15.4 MB, 3.7 us at full bandwidth; the logits are in the cache),
three launches, of which the middle one does nothing for rows without filters: greedy 12 us (one reading pass);
temperature alone 20 us (Philox with wide products, two one-instruction logarithms: 31 instructions a token); top-k 50
45 us (listing 31 of it, as before); top-p 0.9 at temperature 0.7 33 to 38 us (the scan with noise 20, one more pass
that weighs what is ahead of two candidates 10, selecting 3 to 4). What was seen is in bench/NOTES.md.
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
    IMPLEMENTATIONS = ["torch", "compile", "triton"]
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


def assert_drawn(tokens, scores):
    """Tokens [D, R] drawn with noise of their own are as likely as draws from softmax(scores [R, V]) are.

    A few may be outside the kept set: the sort of the chain may have kept other ties at the border of top-p.
    """
    log_p = scores.double().log_softmax(-1)
    p = log_p.exp()
    drawn = log_p.gather(-1, tokens.T)
    kept = drawn.isfinite()
    assert kept.double().mean() > 0.93
    log_p = log_p.masked_fill(log_p.isinf(), 0)  # of no mass
    mean = (p * log_p).sum(-1, keepdim=True)
    variance = (p * log_p.square()).sum(-1) - mean[:, 0].square()
    distance = torch.where(kept, drawn - mean, 0).sum() / (len(tokens) * variance.sum()).sqrt()
    assert distance.abs() < 5, f"{float(distance):.1f} standard deviations from what draws have"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize(("rows", "vocabulary"), CASES, ids=[f"{rows}x{v}" for rows, v in CASES])
def test_sample_tokens(rows, vocabulary, setting, implementation, device, bench_kernel):
    state = state_of(vocabulary, device, **setting)
    positions = torch.arange(rows, device=device)[None]

    def make():
        return (3 * torch.randn(1, rows, vocabulary, device=device)).to(DTYPE), positions, state

    inputs = [make() for _ in range(2)]  # the logits were just written: they are in the cache
    torch.compiler.reset()  # of one function with many settings and shapes, Dynamo soon compiles no more
    call = {
        "torch": chain(setting),
        "compile": torch.compile(chain(setting), dynamic=False, fullgraph=True),
        "triton": sample_tokens,
        "reference": reference_sampling.sample_tokens,
    }[implementation]
    try:
        got = call(*inputs[0])
    except torch._dynamo.exc.BackendCompilerFailed as error:  # torch 2.11: the cumsum of 60 long rows
        if implementation != "compile":
            raise
        pytest.skip(f"torch {torch.__version__} cannot compile this: {error}".splitlines()[0])
    expected = reference_sampling.sample_tokens(*inputs[0])
    if implementation in ("torch", "compile") and setting["temperature"] > 0:
        drawn = torch.cat([call(*inputs[0]) for _ in range(20)])
        assert_drawn(drawn, reference_sampling.filter_logits(inputs[0][0], state)[0])
    else:
        assert (got != expected).sum() <= rows // 60  # two tokens within rounding of each other may change places
    bench_kernel(call, inputs, bytes_moved=rows * vocabulary * DTYPE.itemsize)
