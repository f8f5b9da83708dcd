"""Compiles canonical attention for real GPUs without one; see test_compile.py, whose tools this uses."""

import importlib
import re
import sys

import pytest
import torch
from launches import Launches, print_compiled
from test_compile import ARCHITECTURES, LLAMA, assert_fits, compile_elsewhere

CASES = [  # dtype, shape, options
    (torch.bfloat16, {**LLAMA, "nodes": 60}, {}),
    (torch.bfloat16, {"heads": 16, "kv_heads": 8, "dim": 256, "nodes": 1}, {"window": 1024, "softcap": 50.0}),
    (torch.float16, {"heads": 64, "kv_heads": 8, "dim": 64, "nodes": 60}, {"paged": True, "sink": True, "window": 128}),
    (torch.float32, {**LLAMA, "nodes": 10}, {}),
    (torch.bfloat16, {**LLAMA, "nodes": 1}, {"paged": True, "alike": 60}),
]
# bytes a thread keeps outside of registers: rows of 256 numbers, and float32, whose products are unrolled
SPILLED = {"256": 160, "float32": 256}


def record_launches(arch):
    """Those that the cases above make on `arch`."""
    import radar_kernels

    op, launches = importlib.import_module("radar_kernels.canonical_attention"), Launches(arch, "canonical_attention")
    for dtype, shape, options in CASES:
        launches.label, options = f"{dtype} {shape}", dict(options)
        query = torch.empty(1, shape["nodes"], shape["heads"], shape["dim"], dtype=dtype).transpose(1, 2)
        size = (64, shape["kv_heads"], 64) if options.pop("paged", False) else (1, shape["kv_heads"], 4096)
        cache = torch.empty(*size, shape["dim"], dtype=dtype)
        if len(cache) > 1:
            options["block_table"] = torch.zeros(1, 64, dtype=torch.int32)
        if options.pop("sink", False):
            options["sink"] = torch.zeros(shape["heads"])
        if (most := options.pop("alike", None)) is not None:
            options["alike"] = op.Alike(torch.zeros(9, dtype=torch.int32), most)
        paths = op.Paths(torch.zeros(1, shape["nodes"], 17).int(), torch.zeros(1, shape["nodes"]).int())
        inputs = (query, cache, cache, torch.zeros(1, dtype=torch.int64), paths)
        radar_kernels.canonical_attention(*inputs, **options, backend="triton")
    return launches


def more(ptx):
    return {
        "late": "ld.global" in ptx.partition("griddepcontrol.wait")[2],
        "fused": len(re.findall(r"\bfma\.rn\.f32\b", ptx)),
        "products": sorted(set(re.findall(r"(?:wg)?mma\.[\w.]+?\.m\d+n\d+k\d+", ptx))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_canonical_attention_fits_and_rounds_alike(arch, tmp_path):
    results = compile_elsewhere(__file__, tmp_path, arch)
    assert [result["kernel"] for result in results] == ["prefix_kernel", "path_kernel"] * len(CASES)
    for result in results:
        spilled = sum(most for name, most in SPILLED.items() if name in result["case"])
        assert_fits(result, arch, spilled=spilled)
        assert result["pdl"] == (arch >= 90)
        if result["kernel"] == "path_kernel" and arch >= 90:
            assert result["early loads"], "it runs beside the kernel in front"
            assert result["late"], "and joins behind it"
        else:
            assert not result["early loads"], f"a load before the wait for what writes it: {result}"
    for prefix, path in zip(results[::2], results[1::2], strict=True):
        # the same block of keys does the same to a row in both: the same instructions, nothing fused here and not there
        assert prefix["products"] == path["products"]
        assert "float32" in prefix["case"] or (prefix["products"] and not prefix["fused"] and not path["fused"])


if __name__ == "__main__":
    arch = int(sys.argv[1])
    print_compiled(record_launches(arch), arch, more)
