"""Compiles skinny_linear for real GPUs without one; see test_compile.py, whose tools this uses."""

import importlib
import json
import re

import pytest
import torch
from test_compile import assert_fits, compile_elsewhere, compile_launch

ROWS = (1, 10, 30, 60)
CASES = [  # dtype, N, K, bias
    (torch.bfloat16, 6144, 4096, False),
    (torch.bfloat16, 4096, 4096, False),
    (torch.bfloat16, 28672, 4096, False),
    (torch.bfloat16, 4096, 14336, False),
    (torch.bfloat16, 128256, 4096, False),
    (torch.bfloat16, 32000, 4096, False),
    (torch.bfloat16, 6144, 8192, False),
    (torch.float16, 4608, 3584, True),
    (torch.float16, 10000, 1040, True),
]
ARCH = 90  # others leave it to cuBLAS


def record_launches(arch: int) -> list[tuple]:
    """(label, kernel, plan, arguments) of every launch that the cases above make on `arch`."""
    import radar_kernels
    from radar_kernels import _launch

    op = importlib.import_module("radar_kernels.skinny_linear")
    launches: list[tuple] = []
    label = ""
    _launch.interpreting = lambda: True  # lets CPU tensors through
    op.architecture = lambda device: arch
    op.Plan.launch = lambda plan, kernel, *arguments: launches.append((label, kernel, plan, arguments))
    for dtype, n, k, bias in CASES:
        weight, addend = torch.empty(n, k, dtype=dtype), torch.empty(n, dtype=dtype) if bias else None
        for rows in ROWS if n >= op.MANY_OUTPUTS else ROWS[:2]:
            label = f"{dtype} {n} x {k}"
            x = torch.empty(1, rows, k, dtype=dtype)
            radar_kernels.skinny_linear(x, weight, addend, backend="triton")
    return launches


def main() -> None:
    for label, kernel, plan, arguments in record_launches(ARCH):
        result = compile_launch(kernel, plan, arguments, ARCH)
        result["products"] = sorted(set(re.findall(r"(?:wg)?mma\.[\w.]+?\.m\d+n\d+k\d+", result.pop("ptx"))))
        print(json.dumps({"case": label, **plan.constants, **plan.options, **result}), flush=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What each launch compiled to."""
    results = compile_elsewhere(__file__, tmp_path_factory.mktemp("triton"))
    assert {result["case"] for result in results} == {f"{dtype} {n} x {k}" for dtype, n, k, _ in CASES}
    return results


@pytest.mark.slow
def test_the_kernels_fit(compiled):
    for result in compiled:
        assert_fits(result, ARCH)


@pytest.mark.slow
def test_a_row_is_summed_in_one_order(compiled):
    """One kind of instruction for all numbers of rows, which takes 16 columns at a time."""
    kinds = {}
    for result in compiled:
        shapes = {re.sub(r"n\d+k", "k", event) for event in result["products"]}
        assert len(shapes) == 1, f"several instructions add up: {result}"
        kinds.setdefault(result["case"], []).append(shapes)
    for case, shapes in kinds.items():
        assert len(shapes) > 1
        assert all(shape == shapes[0] for shape in shapes), f"{case}: {shapes}"


if __name__ == "__main__":
    main()
