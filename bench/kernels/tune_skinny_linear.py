"""Times variants of skinny_linear against cuBLAS, to choose the constants of `choose_blocks`. Needs a GPU.

python -m bench.kernels.tune_skinny_linear RESULTS.json

Every linear stands behind a small kernel that writes its input, as in a model: only then does it show what begins
before the input is ready. That kernel takes part in programmatic dependent launch, cuBLAS does not. A variant in which
a row's bits depend on the number of rows is wrong by 1.
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from bench.conftest import rotation
from bench.kernels.bench_skinny_linear import shapes
from bench.kernels.tuning import Case, sweep
from bench.shapes import LLAMA_8B
from radar_kernels import quantize_rows, skinny_linear
from radar_kernels._launch import Plan, jit, tl
from radar_kernels.quantize_rows import unpack_rows

op = importlib.import_module("radar_kernels.skinny_linear")
DTYPE = torch.bfloat16
LIMIT = 4e-3  # relative error: one rounding of the result to 8 bits, and some for cuBLAS
ROWS = (1, 2, 10, 16, 17, 33, 60, 64, 65, 128, 200)  # among 256
WIDE = {
    "128x64, two": op.Blocks(128, 64, 4, 115_000), "256x64": op.Blocks(256, 64, 8, 228_000),
    "64x64, three": op.Blocks(64, 64, 4, 75_000), "128x64, rows by 64": op.Blocks(128, 64, 4, 115_000, rows=64),
}  # fmt: skip
NARROW = {
    "64x128": op.Blocks(64, 128, 4, 228_000), "64x128 / 2": op.Blocks(64, 128, 4, 228_000, parts=2),
    "64x128 / 3, two": op.Blocks(64, 128, 4, 115_000, parts=3),
}  # fmt: skip
EIGHT = {
    "64x128, one": op.Blocks(64, 128, 4, 220_000), "64x128, two": op.Blocks(64, 128, 4, 110_000),
    "64x128, two / 2": op.Blocks(64, 128, 4, 110_000, parts=2),
    "64x128, two / 4": op.Blocks(64, 128, 4, 110_000, parts=4), "128x128, two": op.Blocks(128, 128, 4, 110_000),
}  # fmt: skip
SHAPES = shapes(LLAMA_8B)  # (N, K)
HEAD = {"fc": (4096, 12288), "draft qkv": (6144, 8192), "draft lm_head": (32000, 4096)}


@jit
def write_kernel(source, x, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x = source, for the kernel in front of a linear."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + i, tl.load(source + i, mask=i < size), mask=i < size)


def behind_a_kernel(*products: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The last result of (source, x, weight, scale or none)."""
    pdl = torch.cuda.get_device_capability() >= (9, 0)
    for source, x, weight, *scale in products:
        constants = {"BLOCK": 1024, "PDL": pdl}
        plan = Plan((-(-x.numel() // 1024),), constants, {"launch_pdl": True} if pdl else {})
        plan.launch(write_kernel, source, x, x.numel())
        y = op.LINEAR(x, weight, *scale)
    return y


def ours(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    return skinny_linear(x, weight, scale=scale)


def put(**names: object) -> Callable[[], None]:
    return lambda: vars(op).update(names)


def table(wide: op.Blocks, narrow: op.Blocks, **names: object) -> Callable[[], None]:
    return put(choose_blocks=lambda n, **_: wide if n >= 24576 else narrow, **names)


def error(got: torch.Tensor, inputs: tuple[tuple[torch.Tensor, ...], ...]) -> float:
    source, _, weight, *scale = inputs[-1]
    wide = unpack_rows(weight.float(), source.shape[1]) * scale[0][:, None] if scale else weight.float()
    exact = F.linear(source.float(), wide)
    if op.LINEAR is ours and len(inputs) == 1:
        x = torch.randn(most := 32 if scale else 256, source.shape[1], device="cuda", dtype=DTYPE)
        y = ours(x, weight, *scale)
        parts = [slice(at, at + rows) for rows in ROWS if rows < most for at in (0, most - rows)]
        if not all(torch.equal(ours(x[part], weight, *scale), y[part]) for part in parts):
            return 1.0
    return float((got.float() - exact).norm() / exact.norm())


def make(sizes: list[tuple[int, int]], rows: int, dtype: torch.dtype | None, count: int) -> list[tuple]:
    def one(n: int, k: int) -> tuple[torch.Tensor, ...]:
        source, weight = (torch.randn(lines, k, device="cuda", dtype=DTYPE) for lines in (rows, n))
        return source, torch.empty_like(source), *((weight,) if dtype is None else quantize_rows(weight, dtype))

    return [tuple(one(*size) for size in sizes) for _ in range(count)]


def case(name: str, sizes: list[tuple[int, int]], rows: int, variants: dict, dtype: torch.dtype | None = None) -> Case:
    size = sum(n * k for n, k in sizes) * (2 if dtype is None else 1)
    title, made = f"{name}, {rows} rows", partial(make, sizes, rows, dtype)
    return Case(title, made, rotation(size), behind_a_kernel, error, LIMIT, variants, {})


def cases() -> list[Case]:
    cublas, found = {"cuBLAS": put(LINEAR=F.linear)}, []
    for name, (n, k) in (SHAPES | HEAD).items():
        variants = {label: table(b, b) for label, b in (WIDE if n >= 24576 else NARROW).items()}
        counts = (1, 10, 17) if name in HEAD else (1, 10, 60, 128)
        found += [case(name, [(n, k)], rows, cublas | variants) for rows in counts]
    variants = {label: table(b, b) for label, b in EIGHT.items()}
    for name, size in (SHAPES | HEAD).items():
        if name not in ("qkv", "lm_head"):  # the head's
            found += [case(f"{name} e4m3", [size], rows, variants, torch.float8_e4m3fn) for rows in (10, 17)]
    found += [case("gate-up int8", [SHAPES["gate-up"]], 10, variants, torch.int8)]
    wide, layer = WIDE["128x64, two"], list(SHAPES.values())[:4]
    layers = cublas | {"plain": put(STREAMED=False)}
    for label, b in NARROW.items():
        layers[label] = table(wide, b)
    return found + [case("layer", layer, rows, layers) for rows in (1, 10, 60, 128)]


if __name__ == "__main__":
    op.LINEAR = ours
    sweep(op, cases())
