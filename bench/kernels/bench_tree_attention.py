"""Tree attention of one layer, and the canonical one, against SDPA with a dense mask, cold keys and values."""

import pytest
import torch
from tolerances import assert_close

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of, rotation
from bench.shapes import LLAMA_8B, QWEN3_8B, TINY, VICUNA_13B, Geometry
from radar_kernels import canonical_attention, reference, tree_attention
from radar_kernels.ancestor_paths import ancestor_paths

if ON_GPU:
    DTYPE = torch.bfloat16
    CASES = [(LLAMA_8B, 64, prefix) for prefix in (128, 1024, 4096, 16384, 32768)]
    CASES += [(LLAMA_8B, 16, 4096), (LLAMA_8B, 16, 32768), (LLAMA_8B, 10, 1024), (LLAMA_8B, 1, 4096)]
    CASES += [(QWEN3_8B, 60, 4096), (VICUNA_13B, 60, 2048)]
else:
    DTYPE = torch.float32
    CASES = [(TINY, 60, 256), (TINY, 10, 1024)]


def make(
    geometry: Geometry, nodes: int, prefix: int, device: torch.device, *, capacity: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Inputs of `tree_attention`: a random tree behind `prefix` keys, `capacity` rows (default: 128 to spare)."""
    g, capacity = geometry, capacity or prefix + nodes + 128
    query = torch.randn(1, nodes, g.heads, g.head_dim, device=device, dtype=DTYPE).transpose(1, 2)
    key, value = (torch.randn(1, g.kv_heads, capacity, g.head_dim, device=device, dtype=DTYPE) for _ in range(2))
    dense = torch.eye(nodes, dtype=torch.bool)
    for child in range(1, nodes):
        dense[child] |= dense[(child - 1) // 3]
    bits = (dense.long() << torch.arange(nodes)).sum(-1)
    return query, key, value, torch.tensor([prefix], device=device), bits.view(1, nodes, 1).to(device)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What transformers does: keys repeated for the group, a dense mask. It is even told the length."""
    group, length = query.shape[1] // key.shape[1], mask.shape[-1]
    key, value = (x[:, :, :length].repeat_interleave(group, 1) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "canonical"])
@pytest.mark.parametrize(
    ("geometry", "nodes", "prefix"), CASES, ids=[f"{g.name}-{nodes}-{prefix}" for g, nodes, prefix in CASES]
)
def test_tree_attention(geometry, nodes, prefix, implementation, device, bench_kernel):
    g = geometry
    bytes_moved = 2 * g.kv_heads * (prefix + nodes) * g.head_dim * DTYPE.itemsize
    inputs = [make(geometry, nodes, prefix, device) for _ in range(rotation(bytes_moved))]
    call, calls = implementation_of(implementation, tree_attention, sdpa), inputs
    if implementation == "canonical":
        call, calls = canonical_attention, [(*x[:4], ancestor_paths(x[4], nodes)) for x in inputs]
    elif implementation != "triton":
        visible = reference.visible_keys(*inputs[0][3:], prefix + nodes)[:, None]
        bias = torch.zeros(visible.shape, device=device, dtype=DTYPE).masked_fill(~visible, -torch.inf)
        calls = [(*arguments[:3], bias) for arguments in inputs]
    exact = reference.tree_attention(*(x.double() if x.is_floating_point() else x for x in inputs[0]))
    assert_close(call(*calls[0]), exact, "tree_attention", DTYPE)
    bench_kernel(call, calls, bytes_moved=bytes_moved)
