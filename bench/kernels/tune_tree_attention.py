"""Times variants of tree attention, to choose the constants of `choose_blocks` and `split_plan`. Needs a GPU.

python -m bench.kernels.tune_tree_attention RESULTS.json
"""

import importlib
import json
import sys
from typing import NamedTuple

import torch

from bench.conftest import rotation
from bench.kernels.bench_tree_attention import DTYPE, make
from bench.kernels.tuning import Launches, compile_launches, launch_recorder, replay_microseconds
from bench.shapes import LLAMA_8B
from radar_kernels import reference, tree_attention

op = importlib.import_module("radar_kernels.tree_attention")
LIMIT = 8e-3  # relative error, as in tests/kernels/tolerances.py
PLANS = op.split_plan, op.combine_plan, op.Plan.launch, op.choose_blocks


class Variant(NamedTuple):
    """Block sizes, and what else the plans fix."""

    rows: int
    keys: int
    stages: int
    warps: int
    programs: int
    cost: int = 2  # of a tail unit, in blocks

    def apply(self) -> None:
        op.choose_blocks = lambda **_: op.Blocks(*self[:5])

        def split_plan(**shape):
            plan = PLANS[0](**shape)
            return plan._replace(constants={**plan.constants, "COST": self.cost})

        op.split_plan = split_plan


SEVERAL_TILES = [  # 60 or 64 queries of four heads each
    Variant(64, 64, 3, 4, 128),
    Variant(64, 64, 3, 4, 128, cost=3),
    Variant(64, 64, 3, 4, 256),
    Variant(128, 64, 3, 8, 128),
    Variant(128, 64, 2, 8, 128),
]
ONE_TILE = [
    Variant(64, 64, 4, 4, 128),
    Variant(64, 64, 4, 4, 128, cost=3),
    Variant(64, 64, 4, 4, 128, cost=4),
    Variant(64, 32, 6, 4, 128, cost=3),
    Variant(64, 64, 4, 4, 256, cost=3),
]
CASES = [  # nodes, prefix, capacity (None: what is needed and 128), variants, target in microseconds
    (64, 1024, None, SEVERAL_TILES, 10),
    (64, 4096, None, SEVERAL_TILES, 16),
    (64, 16384, None, SEVERAL_TILES, 42),
    (60, 1024, 8192, SEVERAL_TILES, 10),
    (10, 1024, 4096, ONE_TILE, None),
    (16, 4096, None, ONE_TILE, 9),
    (16, 32768, None, ONE_TILE, 40),
]


def compile_all() -> None:
    """Compiles every variant of every case, several at a time: on empty tensors, with the launches recorded."""
    launches: Launches = {}
    record = launch_recorder(launches)
    for nodes, prefix, capacity, variants, _ in CASES:
        inputs = make(LLAMA_8B, nodes, prefix, torch.device("cuda"), capacity=capacity)
        for variant in (None, *variants):
            restore() if variant is None else variant.apply()
            op.Plan.launch = record
            tree_attention(*inputs)
    restore()
    compile_launches(launches)


def restore() -> None:
    op.split_plan, op.combine_plan, op.Plan.launch, op.choose_blocks = PLANS


def microseconds(inputs: list[tuple[torch.Tensor, ...]], *, only=None) -> float:
    """A call's time, the median of seven replays of 100 calls; of one of the two kernels if `only` names it."""
    if only is not None:
        op.Plan.launch = lambda plan, kernel, *arguments: PLANS[2](plan, kernel, *arguments) if kernel is only else None
    launches = -(-100 // len(inputs)) * len(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            tree_attention(*inputs[i % len(inputs)])
    op.Plan.launch = PLANS[2]
    return replay_microseconds(graph, launches)


def measure(inputs: list[tuple[torch.Tensor, ...]], exact: torch.Tensor) -> dict[str, float]:
    """Error first: a wrong variant is not timed."""
    error = ((tree_attention(*inputs[0]).double() - exact).norm() / exact.norm()).item()
    if not error < LIMIT:
        return {"error": error}
    split, combine = (microseconds(inputs, only=kernel) for kernel in (op.split_kernel, op.combine_kernel))
    return {"us": microseconds(inputs), "split us": split, "combine us": combine, "error": error}


def main(path: str) -> None:
    torch.manual_seed(0)
    compile_all()
    rows = []
    for nodes, prefix, capacity, variants, target in CASES:
        keys = 2 * LLAMA_8B.kv_heads * LLAMA_8B.head_dim * DTYPE.itemsize
        copies = rotation(keys * (prefix + nodes))
        inputs = [make(LLAMA_8B, nodes, prefix, torch.device("cuda"), capacity=capacity) for _ in range(copies)]
        exact = reference.tree_attention(*(x.double() if x.is_floating_point() else x for x in inputs[0]))
        print(f"{nodes} queries, prefix {prefix}, capacity {inputs[0][1].shape[2]}; target {target} us", flush=True)
        for variant in (None, *variants):
            if variant is not None:
                variant.apply()
            row = {"queries": nodes, "prefix": prefix, "capacity": capacity, "target": target}
            row |= {"variant": "as chosen" if variant is None else variant._asdict()}
            try:
                row |= measure(inputs, exact)
            except Exception as problem:  # too much shared memory, for one
                row["problem"] = str(problem)[:200]
            restore()
            rows.append(row)
            figures = "  ".join(f"{row.get(name, float('nan')):6.2f}" for name in ("us", "split us", "combine us"))
            label = "as chosen" if variant is None else str(tuple(variant))
            print(
                f"  {figures}  error {row.get('error', float('nan')):.1e}  {label}  {row.get('problem', '')}",
                flush=True,
            )
        del inputs
    result = {"command": "python -m bench.kernels.tune_tree_attention", "hardware": torch.cuda.get_device_name()}
    with open(path, "w") as file:
        json.dump(result | {"torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.kernels.tune_tree_attention RESULTS.json")
    main(sys.argv[1])
