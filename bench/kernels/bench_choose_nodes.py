"""A policy's number of nodes against two linear layers."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, implementation_of
from radar_kernels import NodeWeights, choose_nodes, reference


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_choose_nodes(implementation, device, bench_kernel):
    shapes = (128, 142), (128,), (4, 128), (4,)
    weights = NodeWeights(*(torch.randn(shape, device=device) / 10 for shape in shapes))
    inputs = [(*(torch.randn(1, n, device=device) for n in (128, 10, 4)), weights) for _ in range(4)]
    call = implementation_of(implementation, choose_nodes, reference.choose_nodes)
    for one in inputs:
        torch.testing.assert_close(call(*one).logits, reference.choose_nodes(*one).logits, rtol=1e-4, atol=1e-4)
    bench_kernel(call, inputs, bytes_moved=sum(part.nbytes for part in weights))
