"""Sampling the tokens of a whole tree against softmax, sort and multinomial."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B, TINY
from radar_kernels import SamplingState, reference_sampling, sample_tokens

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top_k 50": {"temperature": 1.0, "top_k": 50},
    "top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
}
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
CASES = [(60, LLAMA_8B.vocabulary), (1, LLAMA_8B.vocabulary)] if ON_GPU else [(60, TINY.vocabulary)]


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
    torch.compiler.reset()  # of one function with many settings and shapes, Dynamo soon compiles no more
    call = implementation_of(implementation, sample_tokens, chain(setting))
    try:
        got = call(*inputs[0])
    except torch._dynamo.exc.BackendCompilerFailed as error:  # torch 2.11: the cumsum of 60 long rows
        if implementation != "compile":
            raise
        pytest.skip(f"torch {torch.__version__} cannot compile this: {error}".splitlines()[0])
    expected = reference_sampling.sample_tokens(*inputs[0])
    if implementation == "triton" or setting["temperature"] == 0:
        assert (got != expected).sum() <= rows // 60  # two tokens within rounding of each other may change places
    else:  # noise of its own: what it drew may be drawn, but for other ties at the border of top-p
        scores = reference_sampling.filter_logits(inputs[0][0], state)[0]
        assert scores.gather(-1, got.T).isfinite().double().mean() > 0.93
    bench_kernel(call, inputs, bytes_moved=rows * vocabulary * DTYPE.itemsize)
