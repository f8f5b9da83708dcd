"""Times variants of the confidences of a draft level, to choose the constants of their plans. Needs a GPU.

python -m bench.kernels.tune_topk_confidence RESULTS.json
"""

import importlib
import json
import sys
from itertools import product

import torch

from bench.kernels.tuning import Launches, compile_launches, launch_recorder, replay_microseconds
from radar_kernels import reference, topk_confidence

op = importlib.import_module("radar_kernels.topk_confidence")
PLANS = op.segment_size, op.scan_plan, op.Plan.launch
K = 10
CASES = ((10, 32000, 7), (10, 128256, 12))  # rows, vocabulary, target in microseconds
VARIANTS = [
    (segment, block, warps)
    for segment, block, warps in product((32, 64, 128), (1024, 2048, 4096), (2, 4, 8))
    if 4 <= block // (32 * warps) <= 32
]


def apply(segment: int, block: int, warps: int) -> None:
    op.segment_size = lambda vocabulary: segment

    def scan_plan(**shape):
        plan = PLANS[1](**shape)
        every = plan.constants["SEGMENTS"] * segment
        return plan._replace(
            grid=(every // min(block, every), *plan.grid[1:]),
            constants={**plan.constants, "BLOCK": min(block, every)},
            options={**plan.options, "num_warps": warps},
        )

    op.scan_plan = scan_plan


def restore() -> None:
    op.segment_size, op.scan_plan, op.Plan.launch = PLANS


def make(rows: int, vocabulary: int) -> tuple:
    logits = (3 * torch.randn(1, rows, vocabulary, device="cuda")).bfloat16()
    return logits, -torch.rand(1, rows, device="cuda"), torch.zeros(vocabulary, dtype=torch.int64, device="cuda")


def call(logits: torch.Tensor, parents: torch.Tensor, d2t: torch.Tensor):
    return topk_confidence(logits, parents, K, d2t=d2t)


def compile_all() -> None:
    launches: Launches = {}
    record = launch_recorder(launches)
    for rows, vocabulary, _ in CASES:
        inputs = make(rows, vocabulary)
        for variant in (None, *VARIANTS):
            if variant:
                apply(*variant)
            op.Plan.launch = record
            call(*inputs)
            restore()

    compile_launches(launches)


def microseconds(inputs: list[tuple], *, only=None) -> float:
    """A call's time, the median of seven replays of 200 calls; of one of the two kernels if `only` names it."""
    if only is not None:
        op.Plan.launch = lambda plan, kernel, *arguments: PLANS[2](plan, kernel, *arguments) if kernel is only else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(200):
            call(*inputs[i % len(inputs)])
    op.Plan.launch = PLANS[2]
    return replay_microseconds(graph, 200)


def main(path: str) -> None:
    torch.manual_seed(0)
    compile_all()
    results = []
    for rows, vocabulary, target in CASES:
        inputs = [make(rows, vocabulary) for _ in range(4)]  # the logits were just written: they are in the cache
        exact = reference.topk_confidence(*inputs[0][:2], K)
        print(f"{rows} x {vocabulary}, target {target} us: total, scan; (segment, block, warps)", flush=True)
        for variant in (None, *VARIANTS):
            if variant:
                apply(*variant)
            got = call(*inputs[0])
            right = torch.equal(got.candidate_tokens, exact.candidate_tokens) and torch.equal(
                got.indices, exact.indices
            )
            row = {"rows": rows, "vocabulary": vocabulary, "target": target, "variant": variant, "right": right}
            if right:  # a wrong variant is not timed. The selection alone never ends its count of arrivals: not timed
                row |= {"us": microseconds(inputs), "scan us": microseconds(inputs, only=op.scan_kernel)}
            restore()
            results.append(row)
            figures = "  ".join(f"{row.get(name, float('nan')):6.2f}" for name in ("us", "scan us"))
            print(f"  {figures}  {'right' if right else 'WRONG'}  {variant or 'as chosen'}", flush=True)
    result = {"command": "python -m bench.kernels.tune_topk_confidence", "hardware": torch.cuda.get_device_name()}
    with open(path, "w") as file:
        json.dump(result | {"torch": torch.__version__, "rows": results}, file, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.kernels.tune_topk_confidence RESULTS.json")
    main(sys.argv[1])
