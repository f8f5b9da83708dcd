"""The mass of a tree's best nodes, for several numbers of them, against a sort, a sum and a gather."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, implementation_of
from radar_kernels import reference_tree, tree_mass


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tree_mass(implementation, device, bench_kernel):
    nodes = torch.tensor([16, 32, 60, 128], dtype=torch.int32, device=device)
    inputs = [(torch.randn(1, 1510, device=device) - 8, nodes) for _ in range(4)]
    call = implementation_of(implementation, tree_mass, reference_tree.tree_mass)
    for scores, numbers in inputs:
        torch.testing.assert_close(call(scores, numbers), reference_tree.tree_mass(scores, numbers))
    bench_kernel(call, inputs, bytes_moved=inputs[0][0].nbytes)
