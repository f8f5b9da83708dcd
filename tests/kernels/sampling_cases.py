"""States, trees and settings that the sampling tests share, and how kernel and reference are compared."""

import torch

from radar_kernels import SamplingState, reference_sampling, sample_tokens

INF = float("inf")
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "greedy, filters": {"temperature": 0.0, "top_k": 2, "top_p": 0.1, "min_p": 0.5},
    "temperature 1": {},
    "cold": {"temperature": 1e-4},
    "hot": {"temperature": 1e4},
    "top_k": {"top_k": 5, "temperature": 1.5},
    "top_k 1": {"top_k": 1},
    "top_k over the segments": {"top_k": 60, "temperature": 3.0},
    "top_k over V": {"top_k": 100000},
    "top_p": {"top_p": 0.9, "temperature": 0.7},
    "top_p small": {"top_p": 1e-6},
    "top_p of the flat": {"top_p": 0.03, "temperature": 50.0},
    "top_p large": {"top_p": 0.999, "temperature": 2.0},
    "min_p": {"min_p": 0.05},
    "min_p 1": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.7},
    "penalty greedy": {"repetition_penalty": 3.0, "temperature": 0.0},
    "all": {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3, "temperature": 1.2},
    "hot filters": {"top_p": 0.5, "temperature": 1e4},
    "cold filters": {"top_p": 0.5, "top_k": 9, "temperature": 1e-4},
}


def make_state(batch, vocabulary, device="cpu", **values):
    """All off; values are numbers, or one for each sequence."""

    def full(name, off, dtype=torch.float32):
        value = torch.as_tensor(values.get(name, off), dtype=dtype, device=device)
        return value.expand(batch).contiguous()

    bias = values.get("logit_bias")
    return SamplingState(
        seed=full("seed", 1, torch.int64),
        temperature=full("temperature", 1.0),
        top_k=full("top_k", 0, torch.int32),
        top_p=full("top_p", 1.0),
        min_p=full("min_p", 0.0),
        repetition_penalty=full("repetition_penalty", 1.0),
        biased=full("biased", bias is not None, torch.bool),
        logit_bias=torch.zeros(batch, vocabulary, device=device) if bias is None else bias,
        seen=torch.randint(-(2**31), 2**31, (batch, -(-vocabulary // 32)), device=device).int(),
    )


def make_tree(batch, nodes, vocabulary, device="cpu"):
    parents = torch.zeros(batch, nodes, dtype=torch.int64)
    reach = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    for node in range(1, nodes):
        for row in range(batch):
            parents[row, node] = parent = int(torch.randint(node, ()))
            reach[row, node] |= reach[row, parent]
    padded = torch.nn.functional.pad(reach.long(), (0, -nodes % 64)).view(batch, nodes, -1, 64)
    words = (padded << torch.arange(64)).sum(-1)
    return {
        "draft_tokens": torch.randint(vocabulary, (batch, nodes), device=device),
        "ancestors": words.to(device),
    }


def make(batch=1, nodes=3, vocabulary=300, dtype=torch.float32, device="cpu", spread=3.0):
    logits = (torch.randn(batch, nodes, vocabulary, device=device) * spread).to(dtype)
    positions = torch.randint(2**34, (batch, nodes), device=device)
    return logits, positions


def assert_same(logits, positions, state, **tree):
    """Exact; on a GPU, whose logarithm is not the CPU's, the two best may change places when they are 1e-5 apart."""
    got = sample_tokens(logits, positions, state, **tree, backend="triton")
    expected = reference_sampling.sample_tokens(logits, positions, state, **tree)
    assert got.dtype == torch.int64
    if not logits.is_cuda:
        assert torch.equal(got, expected)
        return
    scores = reference_sampling.filter_logits(logits, state, *tree.values())
    noise = reference_sampling.gumbel_noise(state.seed, positions, logits.shape[-1])
    scores = torch.where(state.temperature[:, None, None] > 0, scores + noise, scores)
    gap = scores.gather(-1, expected[..., None]) - scores.gather(-1, got[..., None])
    assert torch.where((got == expected)[..., None], 0, gap).abs().max() <= 1e-5
