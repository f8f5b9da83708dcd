"""One draft level's confidences against log_softmax, topk, add, topk, gathers."""

import pytest
import torch
from tolerances import assert_close

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B, QWEN3_8B, TINY
from radar_kernels import TopkConfidence, reference, topk_confidence

K = 10
if ON_GPU:
    DTYPE = torch.bfloat16
    CASES = [(rows, v) for v in (LLAMA_8B.draft_vocabulary, LLAMA_8B.vocabulary) for rows in (1, K)]
    CASES += [(K, QWEN3_8B.vocabulary)]
else:
    DTYPE = torch.float32
    CASES = [(K, TINY.vocabulary), (K, LLAMA_8B.draft_vocabulary)]


def chain(logits: torch.Tensor, parents: torch.Tensor, k: int, d2t: torch.Tensor) -> TopkConfidence:
    """As in EAGLE-3's own loop."""
    rows = torch.log_softmax(logits.float(), -1).topk(k, -1)
    candidates = rows.values + parents[..., None]
    best = candidates.flatten(1).topk(k, -1)
    return TopkConfidence(candidates, rows.indices + d2t[rows.indices], best.values, best.indices)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "vocabulary"), CASES, ids=[f"{rows}x{v}" for rows, v in CASES])
def test_topk_confidence(rows, vocabulary, implementation, device, bench_kernel):
    def make():
        logits = (3 * torch.randn(1, rows, vocabulary, device=device)).to(DTYPE)
        return logits, -torch.rand(1, rows, device=device), K, torch.zeros(vocabulary, dtype=torch.int64, device=device)

    def ours(logits, parents, k, d2t):
        return topk_confidence(logits, parents, k, d2t=d2t)

    inputs = [make() for _ in range(4)]  # the logits were just written: they are in the cache
    call = implementation_of(implementation, ours, chain)
    got, expected = call(*inputs[0]), reference.topk_confidence(*inputs[0][:3], d2t=inputs[0][3])
    assert_close(got.candidate_scores, expected.candidate_scores, "topk_confidence", torch.float32)
    assert_close(got.scores, expected.scores, "topk_confidence", torch.float32)
    gathered = got.candidate_scores.flatten(1).gather(1, got.indices)
    assert torch.equal(gathered, got.scores)
    bench_kernel(call, inputs, bytes_moved=rows * vocabulary * DTYPE.itemsize)
