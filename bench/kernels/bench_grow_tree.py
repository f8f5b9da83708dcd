"""Six levels of a draft tree, hidden states of the beam included, against scatters and gathers."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B, TINY
from radar_kernels import TopkConfidence, TreeBuffers, grow_tree, reference_tree

K, CALLS, LEVELS = 10, 16, 6
HIDDEN = (LLAMA_8B if ON_GPU else TINY).hidden_size
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def make(device: torch.device) -> tuple[TreeBuffers, list[tuple[TopkConfidence, torch.Tensor]]]:
    slots, words = K + (CALLS - 1) * K * K, -(-(CALLS - 1) * K // 64)

    def integers(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    tree = TreeBuffers(
        torch.zeros(1, slots, device=device), integers(1, slots), integers(1, slots),
        torch.zeros(1, K, device=device), integers(1, K), integers(1, K), integers(1, K, words), integers(1),
        torch.zeros(1, K, HIDDEN, device=device, dtype=DTYPE),
    )  # fmt: skip
    levels = []
    for rows in (1, *(LEVELS - 1) * [K]):
        scores = -torch.rand(1, rows, K, device=device)
        best = scores.flatten(1).topk(K)
        level = TopkConfidence(scores, torch.randint(0, 32000, (1, rows, K), device=device), best.values, best.indices)
        levels.append((level, torch.randn(1, rows, HIDDEN, device=device).to(DTYPE)))
    return tree, levels


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_grow_tree(implementation, device, bench_kernel):
    op = implementation_of(implementation, grow_tree, reference_tree.grow_tree)

    def call(tree: TreeBuffers, levels: list[tuple[TopkConfidence, torch.Tensor]]) -> None:
        for i, (level, hidden) in enumerate(levels):
            op(level, hidden, tree, first=i == 0)

    inputs = [make(device) for _ in range(4)]
    twin = TreeBuffers(*(tensor.clone() for tensor in inputs[0][0]))
    call(*inputs[0])
    for i, (level, hidden) in enumerate(inputs[0][1]):
        reference_tree.grow_tree(level, hidden, twin, first=i == 0)
    assert all(torch.equal(a, b) for a, b in zip(inputs[0][0], twin, strict=True))
    bench_kernel(call, inputs, bytes_moved=2 * LEVELS * K * HIDDEN * DTYPE.itemsize)
