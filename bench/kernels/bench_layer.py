"""What is between a layer's products, one kernel at a time, cold inputs: norms, rotation with the cache, SiLU."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of, rotation
from bench.shapes import LLAMA_8B, TINY
from radar_kernels import add_rms_norm, draft_rows, reference_layer, rms_norm, rotary_angles, rotate_store, silu_mul

DTYPE, G = (torch.bfloat16, LLAMA_8B) if ON_GPU else (torch.float32, TINY)
ROWS = [1, 10, 60]
OPS = {op.__name__: op for op in (rms_norm, add_rms_norm, draft_rows, rotary_angles, rotate_store, silu_mul)}


def arguments(name, rows, device):
    def random(*shape):
        return torch.randn(*shape, device=device, dtype=DTYPE)

    if name == "silu_mul":
        return random(1, rows, 2 * G.intermediate_size).split(G.intermediate_size, dim=-1)
    if name == "rotary_angles":
        return torch.arange(rows, device=device)[None], random(G.head_dim // 2).float(), 1.0, DTYPE
    if name == "draft_rows":
        tokens, weights = torch.arange(rows, device=device)[None], (random(G.hidden_size), random(G.hidden_size))
        return tokens, random(rows, G.hidden_size), random(1, rows, G.hidden_size), tokens[:, 0], weights, 1e-5
    if name != "rotate_store":
        states = [random(1, rows, G.hidden_size) for _ in range(2 if name == "add_rms_norm" else 1)]
        return *states, random(G.hidden_size), 1e-5
    sizes = [G.heads * G.head_dim, *2 * [G.kv_heads * G.head_dim]]
    cache = random(2, 1, G.kv_heads, 512, G.head_dim)
    start = torch.tensor([100], device=device)
    return *random(1, rows, sum(sizes)).split(sizes, dim=-1), *random(2, 1, rows, G.head_dim), *cache, start


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", OPS)
def test_layer(name, rows, implementation, device, bench_kernel):
    plain = getattr(reference_layer, name)
    torch.compiler.reset()  # of one function with many shapes, Dynamo soon compiles no more
    call = implementation_of(implementation, OPS[name], plain)
    first = arguments(name, rows, device)
    moved = sum(x.nbytes for x in first[:3] if isinstance(x, torch.Tensor))
    inputs = [first] + [arguments(name, rows, device) for _ in range(rotation(moved) - 1)]
    torch.testing.assert_close(call(*first), plain(*first), rtol=2e-2, atol=3e-2)  # compiled, fewer roundings
    bench_kernel(call, inputs, bytes_moved=2 * moved)
