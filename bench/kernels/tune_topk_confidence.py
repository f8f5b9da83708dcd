"""Times variants of the confidences of a draft level, to choose the constants of their plans. Needs a GPU.

python -m bench.kernels.tune_topk_confidence RESULTS.json
"""

import importlib
from collections.abc import Callable
from itertools import product

import torch

from bench.kernels.tuning import Case, sweep
from radar_kernels import TopkConfidence, reference, topk_confidence

op = importlib.import_module("radar_kernels.topk_confidence")
SCAN_PLAN = op.scan_plan
K = 10
SHAPES = ((10, 32000), (10, 128256))  # rows, vocabulary
VARIANTS = [
    (segment, block, warps)
    for segment, block, warps in product((32, 64, 128), (1024, 2048, 4096), (2, 4, 8))
    if 4 <= block // (32 * warps) <= 32
]


def variant(segment: int, block: int, warps: int) -> Callable[[], None]:
    def scan_plan(**shape):
        plan = SCAN_PLAN(**shape)
        every = plan.constants["SEGMENTS"] * segment
        return plan._replace(
            grid=(every // min(block, every), *plan.grid[1:]),
            constants={**plan.constants, "BLOCK": min(block, every)},
            options={**plan.options, "num_warps": warps},
        )

    def apply() -> None:
        op.segment_size, op.scan_plan = lambda vocabulary: segment, scan_plan

    return apply


def call(logits: torch.Tensor, parents: torch.Tensor, d2t: torch.Tensor) -> TopkConfidence:
    return topk_confidence(logits, parents, K, d2t=d2t)


def wrong(got: TopkConfidence, inputs: tuple[torch.Tensor, ...]) -> float:
    exact = reference.topk_confidence(*inputs[:2], K)
    names = ("candidate_tokens", "indices")
    return float(not all(torch.equal(getattr(got, name), getattr(exact, name)) for name in names))


def case(rows: int, vocabulary: int) -> Case:
    def inputs(count: int) -> list[tuple[torch.Tensor, ...]]:
        zeros = torch.zeros(vocabulary, dtype=torch.int64, device="cuda")
        logits = [(3 * torch.randn(1, rows, vocabulary, device="cuda")).bfloat16() for _ in range(count)]
        return [(one, -torch.rand(1, rows, device="cuda"), zeros) for one in logits]

    # four copies: the logits were just written, so they are in the cache; the selection alone never ends its count
    return Case(
        f"{rows} x {vocabulary}", inputs, 4, call, wrong, 0.0, {str(one): variant(*one) for one in VARIANTS},
        {"scan": op.scan_kernel},
    )  # fmt: skip


if __name__ == "__main__":
    sweep(op, [case(*shape) for shape in SHAPES])
