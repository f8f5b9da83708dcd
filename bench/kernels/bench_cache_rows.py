"""New rows stored into one layer's cache, and the accepted rows of all layers moved together, against scatter."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B, QWEN3_8B, TINY, Geometry
from radar_kernels import keep_rows, reference, store_rows

ACCEPTED = [0, 1, 11, 25]  # of 60 nodes: the root and three more
if ON_GPU:
    DTYPE, CAPACITY = torch.bfloat16, 4096
    CASES = [(LLAMA_8B, 60), (LLAMA_8B, 10), (LLAMA_8B, 1), (QWEN3_8B, 60)]
else:
    DTYPE, CAPACITY = torch.float32, 512
    CASES = [(TINY, 60)]


def cache(geometry: Geometry, layers: int, device: torch.device) -> torch.Tensor:
    return torch.randn(2, layers, 1, geometry.kv_heads, CAPACITY, geometry.head_dim, device=device, dtype=DTYPE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("geometry", "rows"), CASES, ids=[f"{g.name}-{rows}" for g, rows in CASES])
def test_store_rows(geometry, rows, implementation, device, bench_kernel):
    """One call a layer; the layers rotate, as in a forward."""
    layers, start = cache(geometry, geometry.layers, device), torch.tensor([100], device=device)
    new = torch.randn(2, 1, rows, geometry.kv_heads, geometry.head_dim, device=device, dtype=DTYPE).transpose(2, 3)
    call = implementation_of(implementation, store_rows, reference.store_rows)
    call(layers[0, 0], layers[1, 0], *new, start)
    assert torch.equal(layers[:, 0, :, :, 100 : 100 + rows], new)
    inputs = [(layers[0, i], layers[1, i], *new, start) for i in range(geometry.layers)]
    bench_kernel(call, inputs, bytes_moved=2 * new.nbytes)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("geometry", [g for g, rows in CASES if rows == 60], ids=lambda g: g.name)
def test_keep_rows(geometry, implementation, device, bench_kernel):
    length, count = torch.tensor([100], device=device), torch.tensor([len(ACCEPTED)], device=device)
    path = torch.tensor([ACCEPTED + (17 - len(ACCEPTED)) * [0]], device=device)
    call = implementation_of(implementation, keep_rows, reference.keep_rows)
    first = cache(geometry, geometry.layers, device)
    expected = first.clone()
    expected[..., 100 : 100 + len(ACCEPTED), :] = first[..., [100 + node for node in ACCEPTED], :]
    call(*first, length, path, count)
    assert torch.equal(first, expected)
    bytes_moved = 4 * geometry.layers * geometry.kv_heads * 2 * geometry.head_dim * DTYPE.itemsize  # two rows move
    inputs = [(*cache(geometry, geometry.layers, device), length, path, count) for _ in range(2)]
    bench_kernel(call, inputs, bytes_moved=bytes_moved)
