"""Compiles every kernel for real GPUs without one, at real sizes: no register spills, and shared memory fits the card.

The launchers themselves say what to compile: they run on empty CPU tensors with their launches recorded. That needs a
process without Triton's interpreter, so this file is also the script that the tests start.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# bytes a program may ask for: what is compiled for an A100 has to fit the cards of 8.6, 8.9 and 12.0 as well
SHARED_MEMORY = {80: 101376, 90: 232448}
LLAMA = {"heads": 32, "kv_heads": 8, "dim": 128}
ATTENTION = [
    (torch.bfloat16, {**LLAMA, "nodes": 60, "capacity": 4096}),
    (torch.bfloat16, {**LLAMA, "nodes": 10, "capacity": 32768, "words": 2}),
    (torch.float16, {"heads": 4, "kv_heads": 2, "dim": 16, "nodes": 12, "capacity": 172}),
    (torch.bfloat16, {"heads": 40, "kv_heads": 40, "dim": 128, "nodes": 60, "capacity": 2048}),
    (torch.float16, {"heads": 32, "kv_heads": 8, "dim": 96, "nodes": 60, "capacity": 2048}),
    (torch.bfloat16, {"heads": 16, "kv_heads": 8, "dim": 256, "nodes": 60, "capacity": 2048}),
    (torch.float32, {**LLAMA, "nodes": 60, "capacity": 2048}),
    (torch.float32, {"heads": 8, "kv_heads": 4, "dim": 256, "nodes": 60, "capacity": 1024}),
    (torch.float16, {"heads": 4, "kv_heads": 2, "dim": 16, "nodes": 1, "capacity": 1}),  # ints of 1 become constants
]
ATTENTION_ELSEWHERE = [ATTENTION[i] for i in (0, 5, 6, 7, 8)]  # the widest of each type
LSTM = [(torch.float32, 128, 128), (torch.bfloat16, 512, 128), (torch.float32, 512, 512), (torch.float32, 64, 64)]
CACHE = [  # dtype, key-value heads, new rows, head dimension
    (torch.bfloat16, 8, 60, 128), (torch.bfloat16, 8, 10, 128), (torch.float16, 2, 1, 16), (torch.float16, 8, 60, 96),
    (torch.float32, 4, 256, 256), (torch.float32, 8, 60, 128),
]  # fmt: skip
LAYERS = [  # dtype, rows, heads, key-value heads, head dimension, hidden size, intermediate size
    (torch.bfloat16, 60, 32, 8, 128, 4096, 14336), (torch.bfloat16, 1, 32, 8, 128, 4096, 14336),
    (torch.float16, 10, 14, 2, 64, 896, 4864), (torch.bfloat16, 4, 40, 40, 128, 12288, 13824),
    (torch.float32, 60, 32, 8, 128, 4096, 14336), (torch.float32, 2, 8, 4, 256, 24576, 64),
]  # fmt: skip
TREES = [  # k, calls, nodes, type of the logits, draft vocabulary, whether ids are others than the target's
    (10, 16, 60, torch.bfloat16, 32000, True), (16, 16, 256, torch.float16, 5120, True),
    (1, 16, 2, torch.float32, 64, False), (10, 6, 60, torch.bfloat16, 128256, False),
    (10, 16, 60, torch.float32, 32000, False),
]  # fmt: skip
ARCHITECTURES = sorted(SHARED_MEMORY)


def record_launches(arch: int) -> list[tuple]:
    """(label, kernel, plan, arguments) of every launch that the cases above make on `arch`."""
    import importlib

    import radar_kernels
    from radar_kernels import _launch

    names = ("tree_attention", "lstm_step", "cache_rows", "grow_tree", "select_nodes", "accept_nodes", "draft_rows")
    names += ("share_nodes", "batch_stop", "mass_stop", "rms_norm", "silu_mul", "rotary_angles", "rotate_store")
    ops = [importlib.import_module(f"radar_kernels.{name}") for name in names]
    launches: list[tuple] = []
    label = ""
    _launch.interpreting = lambda: True  # lets CPU tensors through
    for op in ops:
        op.architecture = lambda device: arch
    _launch.Plan.launch = lambda plan, kernel, *arguments: launches.append((label, kernel, plan, arguments))

    step = 1 if arch == 90 else 2  # a compilation takes seconds
    for dtype, shape in ATTENTION if arch == 90 else ATTENTION_ELSEWHERE:
        label = f"tree_attention {dtype} {shape}"
        q = torch.empty(1, shape["nodes"], shape["heads"], shape["dim"], dtype=dtype).transpose(1, 2)
        kv = torch.empty(1, shape["kv_heads"], shape["capacity"], shape["dim"], dtype=dtype)
        bits = torch.zeros(1, shape["nodes"], shape.get("words", 1), dtype=torch.int64)
        radar_kernels.tree_attention(q, kv, kv, torch.zeros(1, dtype=torch.int64), bits, backend="triton")
    for dtype, hidden, middle in LSTM[::step]:
        label = f"lstm_step {dtype} {hidden} {middle}"
        shapes = [(4 * hidden, 10), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
        shapes += [(middle, hidden + 10), (middle,), (2, middle), (2,)]
        weights = radar_kernels.PolicyWeights(*(torch.empty(shape, dtype=dtype) for shape in shapes))
        state = torch.empty(1, hidden)
        for update in (False, True):
            options = {"threshold": torch.zeros(1), "floor": -100.0, "update": update}
            radar_kernels.lstm_step(torch.empty(1, 10), state, state, weights, **options, backend="triton")
    one = torch.zeros(1, dtype=torch.int64)
    label = "batch_stop"
    radar_kernels.batch_stop(*torch.zeros(3, 8, dtype=torch.bool), few=3, backend="triton")
    label = "mass_stop"
    radar_kernels.mass_stop(torch.empty(1, 10), torch.empty(3), one, backend="triton")
    for dtype, heads, rows, dim in CACHE[::step]:
        label = f"store_rows and keep_rows {dtype} {heads} x {rows} x {dim}"
        cache, new = torch.empty(2, 1, heads, 512, dim, dtype=dtype), torch.empty(1, rows, heads, dim, dtype=dtype)
        radar_kernels.store_rows(cache[0], cache[1], *2 * [new.transpose(1, 2)], one, backend="triton")
        path = torch.zeros(1, 17, dtype=torch.int64)
        radar_kernels.keep_rows(cache, cache, one, path, one, backend="triton")
        pages, table = torch.empty(2, 9, heads, 64, dim, dtype=dtype), torch.zeros(1, 9, dtype=torch.int32)
        options = {"block_table": table, "backend": "triton"}
        radar_kernels.store_rows(pages[0], pages[1], *2 * [new.transpose(1, 2)], one, **options)
        radar_kernels.keep_rows(pages, pages, one, path, one, **options)
    for dtype, rows, heads, kv_heads, dim, size, middle in LAYERS[::step]:
        label = f"a layer {dtype} {rows} x {size}"
        x, weight, angles = (
            torch.empty(rows, size, dtype=dtype),
            torch.empty(size, dtype=dtype),
            torch.empty(2, 1, rows, dim, dtype=dtype),
        )
        radar_kernels.rms_norm(x, weight, 1e-5, backend="triton")
        radar_kernels.add_rms_norm(x, x, weight, 1e-5, backend="triton")
        radar_kernels.add_rms_norm(x[None], x[None], weight, 1e-5, count=one, backend="triton")
        product = radar_kernels.Parts(torch.empty(3, rows, size), torch.empty(size), weight, dtype)
        radar_kernels.add_rms_norm(x, product, weight, 1e-5, backend="triton")
        nodes = torch.zeros(1, rows, dtype=torch.int64)
        radar_kernels.rotary_angles(nodes, torch.empty(dim // 2), 1.0, dtype, backend="triton")
        for beam in (None, radar_kernels.Beam(nodes, one)):
            radar_kernels.draft_rows(nodes, x, x[None], one, 2 * (weight,), 1e-5, beam=beam, backend="triton")
        radar_kernels.silu_mul(*torch.empty(rows, 2 * middle, dtype=dtype).split(middle, dim=-1), backend="triton")
        sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
        parts = torch.empty(1, rows, sum(sizes), dtype=dtype).split(sizes, dim=-1)
        cache = torch.empty(2, 1, kv_heads, 512, dim, dtype=dtype)
        norm = torch.empty(dim, dtype=dtype)
        with_norms = (radar_kernels.HeadNorms(norm, norm, 1e-6),) if dim == 64 or rows == 60 else ()
        for norms in (None, *with_norms):
            radar_kernels.rotate_store(*parts, *angles, *cache, one, norms=norms, backend="triton")
        pages, table = torch.empty(2, 9, kv_heads, 64, dim, dtype=dtype), torch.zeros(1, 9, dtype=torch.int32)
        radar_kernels.rotate_store(*parts, *angles, *pages, one, norms=norms, block_table=table, backend="triton")
        positions = torch.zeros(1, rows, dtype=torch.int64)
        radar_kernels.rotate_store(*parts, *angles[:, 0], *cache, one, positions=positions, backend="triton")
    for k, calls, total, dtype, vocabulary, mapped in TREES if arch == 90 else (TREES[0], TREES[3]):
        slots, words = k + (calls - 1) * k * k, -(-(calls - 1) * k // 64)
        label = f"tree of {slots} candidates, beam {k}"

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape)

        def integers(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int64)

        tree = radar_kernels.TreeBuffers(
            floats(1, slots), integers(1, slots), integers(1, slots), floats(1, k), integers(1, k), integers(1, k),
            integers(1, k), integers(1, k, words), integers(1),
        )  # fmt: skip
        for rows, first in ((1, True), (k, False)):
            logits = torch.empty(1, rows, vocabulary, dtype=dtype)
            rest = {"alive": None if mapped else torch.ones(1, dtype=torch.bool)}
            rest["d2t"] = integers(vocabulary) if mapped else None
            radar_kernels.grow_tree(logits, tree, first=first, **rest, backend="triton")
        options = {"total_tokens": total, "tree_top_k": k, "backend": "triton"}
        nodes = radar_kernels.select_nodes(*tree[:3], tree.calls, **options)
        if calls == 6:  # of 32 texts
            active, shared = torch.ones(32, dtype=torch.bool), {"total": 256, "most": total, "backend": "triton"}
            counts = radar_kernels.share_nodes(floats(32, slots), active, **shared).counts
            radar_kernels.select_nodes(*tree[:3], tree.calls, **options, counts=counts[:1])
        longest, one = integers(1, calls + 1), integers(1)
        into = radar_kernels.Acceptance(longest, longest, one, one, one, integers(1, calls + 4))
        seen = torch.zeros(1, 4008, dtype=torch.int32)
        tree = nodes.draft_tokens, nodes.parents, nodes.valid, nodes.parents, one
        radar_kernels.accept_nodes(*tree, into, seen, backend="triton")
    return launches


def compile_launch(kernel, plan, arguments, arch: int) -> dict:
    """What the launch compiles to; as in Triton's dispatch, ints equal to 1 are constants, multiples of 16 known."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    pointers = {torch.bool: "i1", torch.int32: "i32", torch.int64: "i64"}
    pointers |= {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    pointers |= {torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}
    signature, constants, attributes = {}, dict(plan.constants), {}
    for position, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + pointers[value.dtype]
            attributes[position,] = [["tt.divisibility", 16]]
        elif hasattr(value, "block_shape"):  # of Gluon
            signature[name] = f"tensordesc<{pointers[value.base.dtype]}{value.block_shape},{value.layout!r}>"
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[position,] = [["tt.divisibility", 16]]
    signature = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    source_of = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_of(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=plan.options)
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK", "LOCAL"))
    return {
        "shared": compiled.metadata.shared,
        "registers": registers,
        "spilled": stack + local,
        "ptx": compiled.asm["ptx"],
        "leaky vectors": leaky_vectors(compiled.asm["llir"]),
    }


def leaky_vectors(llir: str) -> list[str]:
    """Pairs of int32 computed with `nuw`, so that an overflow is undefined, of which one lane is used by nobody.

    LLVM's SLP vectorizer makes them where two different instructions share a vector. That is legal, but the NVPTX
    backend of Triton 3.6 may put such a pair into one 64-bit register, where it takes `nuw` by its word: the unused
    lane overflows into the used one, and the kernel is silently wrong. Shifts by two amounts stay two shifts.
    """
    found = []
    for pair in re.finditer(r"^ *(%[\w.]+) = (?:shl|add|sub|mul) nuw (?:nsw )?<2 x i32>.*", llir, re.MULTILINE):
        if (by := re.search(r" shl .*<2 x i32> %\S+, <i32 (\w+), i32 (\w+)>", pair[0])) and by[1] != by[2]:
            continue
        name, lanes = re.escape(pair[1]), set()
        for use in re.findall(rf"^.*= .*{name}(?![\w.]).*", llir, re.MULTILINE):
            if re.match(rf" *{name} = ", use):
                continue
            if one := re.search(rf"extractelement <2 x i32> {name}, i\d+ (\d)", use):
                lanes.add(int(one[1]))
            elif one := re.search(rf"insertelement <2 x i32> {name}, .*, i\d+ (\d)", use):
                lanes.add(1 - int(one[1]))
            elif two := re.search(r"shufflevector <2 x i32> (\S+), <2 x i32> (\S+), <\d+ x i32> <(.*?)>", use):
                shown = [int(lane) for lane in re.findall(r"i32 (\d+)", two[3])]
                lanes |= {lane % 2 for lane in shown if (two[1], two[2])[lane // 2] == pair[1]}
            else:
                lanes |= {0, 1}
        if len(lanes) < 2:
            found.append(pair[0].strip())
    return found


def main(arch: int) -> None:
    seen = set()
    for label, kernel, plan, arguments in record_launches(arch):
        kinds = tuple(str(a.dtype) if isinstance(a, torch.Tensor) else (a == 1, a % 16 == 0) for a in arguments)
        key = (kernel.fn.__name__, str(plan.constants), str(plan.options), kinds)
        if key in seen:
            continue
        seen.add(key)
        result = compile_launch(kernel, plan, arguments, arch)
        ptx = result.pop("ptx")
        result["pdl"] = "griddepcontrol.wait" in ptx
        result["early loads"] = len(re.findall(r"\bld\.global", ptx.split("griddepcontrol.wait")[0])) * result["pdl"]
        result["barriers"] = len(re.findall(r"bar(?:rier)?\.(?:cta\.|warp\.)?sync", ptx))
        result["fp32 through tf32"] = "tf32" in ptx
        print(
            json.dumps({"case": label, "kernel": kernel.fn.__name__, **plan.constants, **plan.options, **result}),
            flush=True,
        )


def compile_elsewhere(script: str, cache: Path, *arguments: int) -> list[dict]:
    """The lines that a script prints in a process without the interpreter, with a compile cache of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, script, *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def assert_fits(result: dict, arch: int, *, spilled: int = 0) -> None:
    """`spilled`: bytes a thread may keep outside of registers."""
    assert result["spilled"] <= spilled, f"registers spill: {result}"
    assert result["shared"] <= SHARED_MEMORY[arch], f"shared memory does not fit: {result}"
    assert not result["leaky vectors"], f"a lane may overflow into the next one: {result}"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_fits(arch, tmp_path):
    results = compile_elsewhere(__file__, tmp_path, arch)
    kernels = {"split_kernel", "combine_kernel", "scan_kernel", "rows_kernel", "cell_kernel", "head_kernel"}
    kernels |= {"store_kernel", "keep_kernel", "grow_kernel", "pick_kernel", "share_kernel", "accept_kernel"}
    kernels |= {"norm_kernel", "silu_kernel", "rotate_kernel", "mass_kernel", "angles_kernel", "batch_stop_kernel"}
    assert {result["kernel"] for result in results} == kernels
    # kernels that overwrite, or read back, what other threads of the program read or wrote
    waits = {"keep_kernel": 1, "grow_kernel": 2, "pick_kernel": 1}
    for result in results:
        # for sm_80 ptxas stops at 128 registers with a wide vocabulary, and keeps two numbers elsewhere
        assert_fits(result, arch, spilled=8 if (result["kernel"], arch) == ("grow_kernel", 80) else 0)
        assert result["barriers"] >= waits.get(result["kernel"], 0), f"no barrier in between: {result}"
        assert result["pdl"] == (arch >= 90)
        # what may have been written by the launch in front is not there before the wait for it; these say that they
        # read their weights early
        early = result["kernel"] in ("cell_kernel", "head_kernel", "norm_kernel", "rows_kernel")
        in_time = early or result["early loads"] == 0
        assert in_time, f"a load before the wait: {result}"
        assert not result["fp32 through tf32"], "a float32 product would be rounded to 10 bits"


if __name__ == "__main__":
    main(int(sys.argv[1]))
