"""The accepted branch of a verified tree against gathers, a closure over parents and a scatter."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from radar_kernels import accept_nodes, reference_tree

MAX_ACCEPTED = 17
CASES = [(60, 3), (60, 16), (256, 16)] if ON_GPU else [(60, 3)]  # nodes, accepted


def make(nodes: int, accepted: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A chain, the other nodes below its root; the target agrees with `accepted` of the chain."""
    node = torch.arange(nodes)[None]
    parents = torch.where(node < MAX_ACCEPTED, (node - 1).clamp(min=0), 0)
    tokens = node + 100
    target = torch.where(node < accepted, tokens + 1, 0)
    return tuple(tensor.to(device) for tensor in (tokens, parents, node >= 0, target))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("nodes", "accepted"), CASES, ids=[f"{n}-{a}" for n, a in CASES])
def test_accept_nodes(nodes, accepted, implementation, device, bench_kernel):
    op = implementation_of(implementation, accept_nodes, reference_tree.accept_nodes)

    def call(*inputs: torch.Tensor) -> reference_tree.Acceptance:
        return op(*inputs, max_accepted=MAX_ACCEPTED)

    inputs = [make(nodes, accepted, device) for _ in range(4)]
    expected = reference_tree.accept_nodes(*inputs[0], max_accepted=MAX_ACCEPTED)
    assert expected.accept_length.tolist() == [accepted]
    assert all(torch.equal(a, b) for a, b in zip(call(*inputs[0]), expected, strict=True))
    bench_kernel(call, inputs, bytes_moved=sum(tensor.nbytes for tensor in inputs[0]))
