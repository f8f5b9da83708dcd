"""Compiles skinny_linear for real GPUs without one; see test_compile.py, whose tools this uses."""

import importlib
import json
import re

import pytest
import torch
from launches import Launches
from test_compile import assert_fits, compile_elsewhere, compile_launch

ROWS = (2, 17, 60, 200)
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
KINDS = [  # name, dtype of 8-bit weights, parts of a sum, cases
    ("plain", None, 1, CASES),
    ("streamed", None, 1, CASES),
    ("in parts", None, 4, CASES[3:4]),
    ("int8", torch.int8, 1, CASES[2:4] + CASES[-1:]),
    ("e4m3", torch.float8_e4m3fn, 1, CASES[2:4] + CASES[-1:]),
]
ARCH = 90  # others leave it to cuBLAS


def record_launches(arch):
    """Those that the cases above make on `arch`."""
    import radar_kernels

    op, launches = importlib.import_module("radar_kernels.skinny_linear"), Launches(arch, "skinny_linear")
    whole = dict(vars(op))
    for (name, kind, parts, _), (dtype, n, k, bias) in ((some, case) for some in KINDS for case in some[-1]):
        op.STREAMED = name != "plain"
        op.choose_blocks = lambda parts=parts, **how: whole["choose_blocks"](**how)._replace(parts=parts)
        columns = k if kind is None else -(-k // 128) * 128
        weight, addend = torch.empty(n, columns, dtype=kind or dtype), torch.empty(n, dtype=dtype) if bias else None
        scale = None if kind is None else torch.empty(n)
        for rows in ROWS if kind in (None, torch.int8) else ROWS[:2]:
            launches.label = f"{name} {dtype} {n} x {k}"
            x = torch.empty(1, rows, k, dtype=dtype)
            radar_kernels.skinny_linear(x, weight, addend, scale=scale, backend="triton")
    return launches


def main() -> None:
    for label, kernel, plan, arguments in record_launches(ARCH):
        result = compile_launch(kernel, plan, arguments, ARCH)
        ptx = result.pop("ptx")
        result["products"] = sorted(set(re.findall(r"(?:wg)?mma\.[\w.]+?\.m\d+n\d+k\d+", ptx)))
        early, late = ptx.split("griddepcontrol.wait")
        result["fetched"] = [len(re.findall(r"cp\.async\.bulk\.tensor", half)) for half in (early, late)]
        print(
            json.dumps({"case": label, "kernel": kernel.fn.__name__, **plan.constants, **plan.options, **result}),
            flush=True,
        )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What each launch compiled to."""
    results = compile_elsewhere(__file__, tmp_path_factory.mktemp("triton"))
    assert {result["case"] for result in results} == {
        f"{name} {dtype} {n} x {k}" for name, _, _, cases in KINDS for dtype, n, k, _ in cases
    }
    return results


@pytest.mark.slow
def test_the_kernels_fit(compiled):
    for result in compiled:
        assert_fits(result, ARCH)


@pytest.mark.slow
def test_the_first_weights_are_fetched_before_the_wait_and_nothing_else(compiled):
    for result in compiled:
        early, late = result["fetched"]
        if result["kernel"] != "linear_kernel":
            assert early == late == 0
            continue
        # a tile has 128 bytes a line, or is fetched in pieces that have: one by one, or by as many threads (Triton 3.6)
        pieces = [-(-result["BK"] * size // 128) for size in (1 if result["NARROW"] else 2, 2)]
        stages = result["STAGES"]
        assert (early, late) in [(stages * w, stages * x + w + x) for w, x in (pieces, (1, 1))]


@pytest.mark.slow
def test_a_row_is_summed_in_one_order(compiled):
    """One kind of instruction for all numbers of rows, which takes 16 columns at a time."""
    kinds = {}
    for result in (one for one in compiled if one["kernel"] != "sum_kernel"):
        shapes = {re.sub(r"n\d+k", "k", event) for event in result["products"]}
        assert len(shapes) == 1, f"none or several instructions add up: {result}"
        kinds.setdefault(result["case"], []).append(shapes)
    for case, shapes in kinds.items():
        assert len(shapes) > 1
        assert all(shape == shapes[0] for shape in shapes), f"{case}: {shapes}"


if __name__ == "__main__":
    main()
