"""Times variants of skinny_linear against cuBLAS, to choose the constants of `choose_blocks`. Needs a GPU.

python -m bench.kernels.tune_skinny_linear RESULTS.json

Every linear stands behind a small kernel that writes its input, as in a model: only then does it show what begins
before the input is ready. That kernel takes part in programmatic dependent launch, cuBLAS does not.
"""

import importlib
import json
import sys
import time

import torch
from torch.nn import functional as F

from bench.conftest import rotation
from bench.kernels.tuning import Launches, compile_launches, launch_recorder, replay_microseconds
from radar_kernels import skinny_linear
from radar_kernels._launch import Plan, jit, tl

op = importlib.import_module("radar_kernels.skinny_linear")
DTYPE = torch.bfloat16
LIMIT = 4e-3  # relative error: one rounding of the result to 8 bits, and some for cuBLAS
BANDWIDTH = 4.2e12  # bytes a second that an H200 reads
CHOOSE, LAUNCH = op.choose_blocks, op.Plan.launch
op.MANY_OUTPUTS = 0  # any number of rows

NARROW = [  # up to 8192 outputs; Blocks: outputs, depth, warps, shared
    op.Blocks(64, 128, 4, 220_000),
    op.Blocks(64, 64, 4, 110_000),
    op.Blocks(32, 128, 8, 110_000),
    op.Blocks(32, 64, 4, 110_000),
]
WIDE = [
    op.Blocks(128, 64, 4, 110_000),
    op.Blocks(128, 64, 8, 110_000),
    op.Blocks(128, 128, 8, 110_000),
    op.Blocks(64, 64, 4, 56_000),
]
LAYER = {"qkv": (6144, 4096), "o": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336)}
CASES = {  # Llama-3.1-8B and its draft head: (N, K), rows
    **{name: (shape, (1, 10, 60)) for name, shape in LAYER.items()},
    "lm_head": ((128256, 4096), (1, 10, 60)),
    "draft qkv": ((6144, 8192), (10,)),
    "draft lm_head": ((32000, 4096), (10,)),
}


@jit
def write_kernel(source, x, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x = source, for the kernel in front of a linear."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + i, tl.load(source + i, mask=i < size), mask=i < size)


def write(source: torch.Tensor, x: torch.Tensor) -> None:
    pdl = torch.cuda.get_device_capability() >= (9, 0)
    plan = Plan((-(-x.numel() // 1024),), {"BLOCK": 1024, "PDL": pdl}, {"launch_pdl": True} if pdl else {})
    LAUNCH(plan, write_kernel, source, x, x.numel())


def variants(n: int) -> list:
    return NARROW if n <= 8192 else WIDE


def choose(blocks) -> None:
    op.choose_blocks = CHOOSE if blocks is None else lambda **_: blocks


def compile_all() -> None:
    """Compiles every variant of every case, several at a time: on empty tensors, with the launches recorded."""
    launches: Launches = {}
    op.Plan.launch = launch_recorder(launches)
    for (n, k), counts in CASES.values():
        weight = torch.empty(n, k, device="cuda", dtype=DTYPE)
        for blocks in (None, *variants(n)):
            choose(blocks)
            for rows in counts:
                skinny_linear(torch.empty(rows, k, device="cuda", dtype=DTYPE), weight)
    choose(None)
    op.Plan.launch = LAUNCH

    compile_launches(launches)


def microseconds(steps: list, *, at_least: float = 600e-6, expected: float) -> float:
    """Time of one run of all `steps` in a CUDA graph that repeats them, the median of seven replays."""
    repeats = max(1, int(at_least / expected))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is set up at the first call
        for step in steps:
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for step in steps:
                step()
    return replay_microseconds(graph, repeats)


def chain(linear, pairs: list) -> list:
    """For each (source, x, weight): write x, then multiply it. The result of a step lives until the graph is gone."""
    return [step for s, x, w in pairs for step in (lambda s=s, x=x: write(s, x), lambda x=x, w=w: linear(x, w))]


def error(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    exact = F.linear(x.float(), weight.float())
    return ((got.float() - exact).norm() / exact.norm()).item()


def tune(name: str, shape: tuple[int, int], counts: tuple[int, ...]) -> list[dict]:
    n, k = shape
    weights = [torch.randn(n, k, device="cuda", dtype=DTYPE) for _ in range(rotation(2 * n * k))]
    source = torch.randn(max(counts), k, device="cuda", dtype=DTYPE)
    floor = 2 * n * k / BANDWIDTH
    first_rows: dict = {}
    results = []
    print(f"{name} {n} x {k}, floor {floor * 1e6:.1f} us; us with {counts} rows, kernel in front included", flush=True)
    for blocks in ("cuBLAS", None, *variants(n)):
        linear = F.linear if blocks == "cuBLAS" else skinny_linear
        row: dict = {"name": name, "n": n, "k": k, "us": {}, "error": {}}
        row["variant"] = "cuBLAS" if blocks == "cuBLAS" else "as chosen" if blocks is None else blocks._asdict()
        choose(None if blocks == "cuBLAS" else blocks)
        try:
            for rows in counts:
                given = source[:rows]
                x = torch.empty_like(given)
                got = linear(given, weights[0])
                row["error"][rows] = error(got, given, weights[0])
                same = torch.equal(first_rows.setdefault(blocks, got[:1].clone()), got[:1])
                row["same bits"] = row.get("same bits", True) and same
                if not row["error"][rows] < LIMIT:
                    raise ArithmeticError(f"relative error {row['error'][rows]:.1e} at {rows} rows")
                steps = chain(linear, [(given, x, weight) for weight in weights])
                row["us"][rows] = microseconds(steps, expected=len(weights) * floor) / len(weights)
        except Exception as problem:  # too much shared memory, for one
            row["problem"] = str(problem)[:200]
        choose(None)
        results.append(row)
        times = "  ".join(f"{row['us'].get(rows, float('nan')):6.1f}" for rows in counts)
        label = row["variant"] if isinstance(row["variant"], str) else str(tuple(blocks))
        bits = {True: "", False: "  rows have other bits among others", None: ""}[row.get("same bits")]
        print(f"  {times}  {label}{bits}  {row.get('problem', '')}", flush=True)
    return results


def best(results: list[dict], n: int, k: int) -> dict | None:
    """The variant of one shape that is the fastest over all numbers of rows together; None if it is cuBLAS."""
    rows = [row for row in results if (row["n"], row["k"]) == (n, k) and "problem" not in row]
    row = min(rows, key=lambda row: sum(row["us"].values()))
    return None if row["variant"] == "cuBLAS" else row["variant"]


def tune_layer(results: list[dict]) -> list[dict]:
    """A layer's four linears, a small kernel before each: cuBLAS, the op as it is, the best variant of each shape."""
    fastest = {shape: best(results, *shape) for shape in LAYER.values()}

    def tuned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        variant = fastest[tuple(weight.shape)]
        if variant is None:
            return F.linear(x, weight)
        choose(None if variant == "as chosen" else op.Blocks(**variant))
        return skinny_linear(x, weight)

    layers = [[torch.randn(*shape, device="cuda", dtype=DTYPE) for shape in LAYER.values()] for _ in range(3)]
    floor = sum(2 * w.numel() for w in layers[0]) / BANDWIDTH
    rows = []
    print(f"a layer, floor {floor * 1e6:.1f} us: {fastest}", flush=True)
    for count in (1, 10, 60):
        pairs = []
        for weight in (weight for layer in layers for weight in layer):
            source = torch.randn(count, weight.shape[1], device="cuda", dtype=DTYPE)
            pairs.append((source, torch.empty_like(source), weight))
        row = {"name": "layer", "rows": count}
        for label, linear in (("cuBLAS", F.linear), ("as chosen", skinny_linear), ("best", tuned), ("again", F.linear)):
            row[label] = microseconds(chain(linear, pairs), expected=3 * floor, at_least=1e-3) / 3
            choose(None)
        rows.append(row)
        print(f"  {count:2d} rows: " + "  ".join(f"{k} {v:.1f}" for k, v in row.items() if isinstance(v, float)))
    return rows


def main(path: str) -> None:
    torch.manual_seed(0)
    started = time.perf_counter()
    compile_all()
    rows = [row for name, (shape, counts) in CASES.items() for row in tune(name, shape, counts)]
    rows += tune_layer(rows)
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    result = {"command": "python -m bench.kernels.tune_skinny_linear", "hardware": torch.cuda.get_device_name()}
    with open(path, "w") as file:
        json.dump(result | {"torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.kernels.tune_skinny_linear RESULTS.json")
    main(sys.argv[1])
