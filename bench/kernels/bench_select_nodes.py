"""The selection of the nodes to verify against a sort, gathers and a transitive closure."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from radar_kernels import reference_tree, select_nodes

CASES = [(10, 16, 60), (10, 8, 60), (16, 16, 256)] if ON_GPU else [(10, 16, 60)]  # k, calls, nodes


def make(k: int, calls: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Six levels of random scores in a buffer for `calls`."""
    slots = k + (calls - 1) * k * k
    scores, parents = torch.full((1, slots), -torch.inf), torch.full((1, slots), -1)
    scores[:, :k] = -3 * torch.rand(1, k)
    beam = torch.arange(k)[None]
    for first in range(k, k + 5 * k * k, k * k):
        new = slice(first, first + k * k)
        parents[:, new] = beam.repeat_interleave(k, 1)
        scores[:, new] = scores.gather(1, parents[:, new]) - 3 * torch.rand(1, k * k)
        beam = first + scores[:, new].topk(k).indices
    tokens = torch.randint(0, 32000, (1, slots))
    return tuple(tensor.to(device) for tensor in (scores, tokens, parents, torch.tensor([1])))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("k", "calls", "nodes"), CASES, ids=[f"{k}x{calls}-{nodes}" for k, calls, nodes in CASES])
def test_select_nodes(k, calls, nodes, implementation, device, bench_kernel):
    op = implementation_of(implementation, select_nodes, reference_tree.select_nodes)

    def call(*inputs: torch.Tensor) -> reference_tree.VerifyTree:
        return op(*inputs, total_tokens=nodes, tree_top_k=k)

    inputs = [make(k, calls, device) for _ in range(4)]
    expected = reference_tree.select_nodes(*inputs[0], total_tokens=nodes, tree_top_k=k)
    assert all(torch.equal(a, b) for a, b in zip(call(*inputs[0]), expected, strict=True))
    bench_kernel(call, inputs, bytes_moved=inputs[0][0].nbytes)
