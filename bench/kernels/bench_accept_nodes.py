"""The accepted branch of a verified tree, noted, against gathers, a closure over parents and scatters."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B
from radar_kernels import Acceptance, accept_nodes, reference_tree

MAX_ACCEPTED = 17
CASES = [(60, 3), (60, 16), (256, 16)] if ON_GPU else [(60, 3)]  # nodes, accepted


def make(nodes: int, accepted: int, device: torch.device) -> tuple[object, ...]:
    """A chain, the other nodes below its root; the target agrees with `accepted` of the chain."""
    node = torch.arange(nodes)[None]
    parents = torch.where(node < MAX_ACCEPTED, (node - 1).clamp(min=0), 0)
    tokens = node + 100
    target = torch.where(node < accepted, tokens + 1, 0)
    tree = (tensor.to(device) for tensor in (tokens, parents, node >= 0, target, torch.ones(1).long()))
    sizes = (1, MAX_ACCEPTED), (1, MAX_ACCEPTED), (1,), (1,), (1,), (1, 3 + MAX_ACCEPTED)
    into = Acceptance(*(torch.zeros(size, dtype=torch.int64, device=device) for size in sizes))
    return *tree, into, torch.zeros(1, LLAMA_8B.vocabulary // 32, dtype=torch.int32, device=device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("nodes", "accepted"), CASES, ids=[f"{n}-{a}" for n, a in CASES])
def test_accept_nodes(nodes, accepted, implementation, device, bench_kernel):
    call = implementation_of(implementation, accept_nodes, reference_tree.accept_nodes)
    inputs, (*tree, into, seen) = [make(nodes, accepted, device) for _ in range(4)], make(nodes, accepted, device)
    call(*inputs[0])
    reference_tree.accept_nodes(*tree, into, seen)
    assert into.accept_length.tolist() == [accepted]
    assert all(torch.equal(a, b) for a, b in zip((*inputs[0][5], inputs[0][6]), (*into, seen), strict=True))
    bench_kernel(call, inputs, bytes_moved=sum(tensor.nbytes for tensor in tree))
