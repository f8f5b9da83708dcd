"""Compiles skinny_linear for real GPUs without one; see test_compile.py, whose tools this uses."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_compile import ARCHITECTURES, SHARED_MEMORY, compile_launch

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
SPLIT = (torch.bfloat16, 4096, 14336, True)  # no plan splits K, or asks in bulk, until that is measured to be worth it


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
    for case in (*CASES, SPLIT):
        dtype, n, k, bias = case
        if case is SPLIT:
            op.choose_blocks = lambda **_: op.Blocks(64, 64, 2, 4, 80_000, 12_000_000, True)
        weight, addend = torch.empty(n, k, dtype=dtype), torch.empty(n, dtype=dtype) if bias else None
        for rows in ROWS:
            label = f"{dtype} {n} x {k}"
            x = torch.empty(1, rows, k, dtype=dtype)
            radar_kernels.skinny_linear(x, weight, addend, backend="triton")
    return launches


def main(arch: int) -> None:
    for label, kernel, plan, arguments in record_launches(arch):
        result = compile_launch(kernel, plan, arguments, arch)
        ptx = result.pop("ptx")
        names = r"cp\.async\.bulk\.prefetch|prefetch\.global|griddepcontrol\.\w+|cp\.async\.cg|[ls][dt]\.global"
        names += r"|(?:wg)?mma\.[\w.]+?\.m\d+n\d+k\d+"
        result["events"] = [event for event, _ in itertools.groupby(re.findall(names, ptx))]
        print(
            json.dumps({"case": label, "kernel": kernel.fn.__name__, **plan.constants, **plan.options, **result}),
            flush=True,
        )


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request, tmp_path_factory):
    """(architecture, what each launch compiled to)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cache = str(tmp_path_factory.mktemp("triton"))
    environment |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(request.param)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert {result["kernel"] for result in results} == {"linear_kernel", "combine_kernel"}
    return request.param, results


def test_the_kernels_fit(compiled):
    arch, results = compiled
    for result in results:
        assert result["spilled"] == 0, f"registers spill: {result}"
        assert result["shared"] <= SHARED_MEMORY[arch], f"shared memory does not fit: {result}"
        assert not result["leaky vectors"], f"a lane may overflow into the next one: {result}"


def test_weights_are_asked_for_before_the_wait_and_nothing_else_is(compiled):
    arch, results = compiled
    for result in results:
        wait, release = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
        before = [wait, release] if arch >= 90 else []
        if arch >= 90 and result["kernel"] == "linear_kernel":
            assert result["PREFETCH"] > 0, f"nothing is asked for: {result}"
            before.insert(0, "cp.async.bulk.prefetch" if result["BULK"] else "prefetch.global")
        assert result["events"][: len(before)] == before, f"not in this order: {result}"
        assert not {wait, release, *before} & set(result["events"][len(before) :])
        assert "st.global" in result["events"]


def test_a_row_is_summed_in_one_order(compiled):
    """One kind of instruction for all numbers of rows, whose product of 16 columns has one width of outputs."""
    kinds = {}
    for result in compiled[1]:
        if result["kernel"] == "linear_kernel":
            shapes = {re.sub(r"n\d+k", "k", event) for event in result["events"] if "mma" in event}
            assert len(shapes) == 1, f"several instructions add up: {result}"
            kinds.setdefault((result["case"], result["SPLITS"]), []).append(shapes)
    assert len(kinds) == len(CASES) + 1
    for case, shapes in kinds.items():
        assert len(shapes) == len(ROWS)
        assert all(shape == shapes[0] for shape in shapes), f"{case}: {shapes}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
