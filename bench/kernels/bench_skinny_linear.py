"""One linear layer of a few rows, cold weights, against cuBLAS.

Alone in its chain: what it gains by starting before its input is ready does not show here."""

import pytest
import torch
from tolerances import relative_error
from torch.nn import functional as F

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of, rotation
from bench.shapes import LLAMA_8B, TINY, Geometry
from radar_kernels import skinny_linear

LIMIT = 4e-3  # one rounding of the result to 8 bits


def shapes(g: Geometry) -> dict[str, tuple[int, int]]:
    """(N, K) of a model's linears."""
    return {
        "qkv": ((g.heads + 2 * g.kv_heads) * g.head_dim, g.hidden_size),
        "o": (g.hidden_size, g.heads * g.head_dim),
        "gate-up": (2 * g.intermediate_size, g.hidden_size),
        "down": (g.hidden_size, g.intermediate_size),
        "lm_head": (g.vocabulary, g.hidden_size),
    }


DTYPE, GEOMETRY = (torch.bfloat16, LLAMA_8B) if ON_GPU else (torch.float32, TINY)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What is compiled: for a product of matrices alone, torch.compile calls cuBLAS too unless told to tune."""
    return F.linear(x, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [1, 10, 60])
@pytest.mark.parametrize("name", shapes(GEOMETRY))
def test_skinny_linear(name, rows, implementation, device, bench_kernel):
    n, k = shapes(GEOMETRY)[name]
    copies = rotation(n * k * DTYPE.itemsize)
    weights = [torch.randn(n, k, device=device, dtype=DTYPE) for _ in range(copies)]
    x = torch.randn(1, rows, k, device=device, dtype=DTYPE)
    torch.compiler.reset()  # of one function with many shapes, Dynamo soon compiles no more
    call = implementation_of(implementation, skinny_linear, linear)
    expected = F.linear(x.float(), weights[0].float())
    assert relative_error(call(x, weights[0]), expected) < LIMIT
    bench_kernel(call, [(x, weight) for weight in weights], bytes_moved=n * k * DTYPE.itemsize)
