"""Times variants of skinny_linear against cuBLAS, to choose the constants of `choose_blocks`. Needs a GPU.

python -m bench.kernels.tune_skinny_linear RESULTS.json

Every linear stands behind a small kernel that writes its input, as in a model: only then does it show what begins
before the input is ready. That kernel takes part in programmatic dependent launch, cuBLAS does not.
"""

import importlib
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bench.conftest import rotation
from bench.kernels.bench_skinny_linear import shapes
from bench.kernels.tuning import Case, sweep
from bench.shapes import LLAMA_8B
from radar_kernels import skinny_linear
from radar_kernels._launch import Plan, jit, tl

op = importlib.import_module("radar_kernels.skinny_linear")
DTYPE = torch.bfloat16
LIMIT = 4e-3  # relative error: one rounding of the result to 8 bits, and some for cuBLAS
NARROW = [  # up to 8192 outputs; Blocks: outputs, depth, warps, shared
    op.Blocks(64, 128, 4, 220_000), op.Blocks(64, 64, 4, 110_000), op.Blocks(32, 128, 8, 110_000),
    op.Blocks(32, 64, 4, 110_000),
]  # fmt: skip
WIDE = [
    op.Blocks(128, 64, 4, 110_000), op.Blocks(128, 64, 8, 110_000), op.Blocks(128, 128, 8, 110_000),
    op.Blocks(64, 64, 4, 56_000),
]  # fmt: skip
SHAPES = {name: (shape, (1, 10, 60)) for name, shape in shapes(LLAMA_8B).items()}
SHAPES |= {"draft qkv": ((6144, 8192), (10,)), "draft lm_head": ((32000, 4096), (10,))}  # (N, K), rows


@jit
def write_kernel(source, x, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x = source, for the kernel in front of a linear."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + i, tl.load(source + i, mask=i < size), mask=i < size)


def behind_a_kernel(source: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    pdl = torch.cuda.get_device_capability() >= (9, 0)
    plan = Plan((-(-x.numel() // 1024),), {"BLOCK": 1024, "PDL": pdl}, {"launch_pdl": True} if pdl else {})
    plan.launch(write_kernel, source, x, x.numel())
    return op.LINEAR(x, weight)


def variant(blocks: op.Blocks | None) -> Callable[[], None]:
    """None: cuBLAS."""

    def apply() -> None:
        if blocks is None:
            op.LINEAR = F.linear
        else:
            op.choose_blocks = lambda **_: blocks

    return apply


def error(got: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> float:
    exact = F.linear(inputs[0].float(), inputs[2].float())
    return float((got.float() - exact).norm() / exact.norm())


def case(name: str, n: int, k: int, rows: int) -> Case:
    def inputs(count: int) -> list[tuple[torch.Tensor, ...]]:
        source = torch.randn(rows, k, device="cuda", dtype=DTYPE)
        return [(source, torch.empty_like(source), torch.randn(n, k, device="cuda", dtype=DTYPE)) for _ in range(count)]

    variants = {"cuBLAS": variant(None)}
    variants |= {str(tuple(blocks)): variant(blocks) for blocks in (NARROW if n <= 8192 else WIDE)}
    title = f"{name} {n} x {k}, {rows} rows, kernel in front included"
    return Case(title, inputs, rotation(2 * n * k), behind_a_kernel, error, LIMIT, variants, {})


if __name__ == "__main__":
    op.MANY_OUTPUTS = 0  # any number of rows
    op.LINEAR = skinny_linear
    sweep(op, [case(name, *shape, rows) for name, (shape, counts) in SHAPES.items() for rows in counts])
