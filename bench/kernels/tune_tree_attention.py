"""Times variants of tree attention, to choose the constants of `choose_blocks` and `split_plan`. Needs a GPU.

python -m bench.kernels.tune_tree_attention RESULTS.json
"""

import importlib
from typing import NamedTuple

import torch

from bench.conftest import rotation
from bench.kernels.bench_tree_attention import DTYPE, make
from bench.kernels.tuning import Case, sweep
from bench.shapes import LLAMA_8B
from radar_kernels import reference, tree_attention

op = importlib.import_module("radar_kernels.tree_attention")
LIMIT = 8e-3  # relative error, as in tests/kernels/tolerances.py
SPLIT_PLAN = op.split_plan


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
            plan = SPLIT_PLAN(**shape)
            return plan._replace(constants={**plan.constants, "COST": self.cost})

        op.split_plan = split_plan


SEVERAL_TILES = [  # 60 or 64 queries of four heads each
    Variant(64, 64, 3, 4, 128), Variant(64, 64, 3, 4, 128, cost=3), Variant(64, 64, 3, 4, 256),
    Variant(128, 64, 3, 8, 128), Variant(128, 64, 2, 8, 128),
]  # fmt: skip
ONE_TILE = [
    Variant(64, 64, 4, 4, 128), Variant(64, 64, 4, 4, 128, cost=3), Variant(64, 64, 4, 4, 128, cost=4),
    Variant(64, 32, 6, 4, 128, cost=3), Variant(64, 64, 4, 4, 256, cost=3),
]  # fmt: skip
CASES = [  # nodes, prefix, capacity (None: what is needed and 128), variants
    (64, 1024, None, SEVERAL_TILES),
    (64, 4096, None, SEVERAL_TILES),
    (64, 16384, None, SEVERAL_TILES),
    (60, 1024, 8192, SEVERAL_TILES),
    (10, 1024, 4096, ONE_TILE),
    (16, 4096, None, ONE_TILE),
    (16, 32768, None, ONE_TILE),
]


def error(got: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> float:
    exact = reference.tree_attention(*(x.double() if x.is_floating_point() else x for x in inputs))
    return float((got.double() - exact).norm() / exact.norm())


def case(nodes: int, prefix: int, capacity: int | None, variants: list[Variant]) -> Case:
    keys = 2 * LLAMA_8B.kv_heads * LLAMA_8B.head_dim * DTYPE.itemsize * (prefix + nodes)

    def inputs(count: int) -> list[tuple[torch.Tensor, ...]]:
        return [make(LLAMA_8B, nodes, prefix, torch.device("cuda"), capacity=capacity) for _ in range(count)]

    return Case(
        f"{nodes} queries, prefix {prefix}, capacity {capacity}", inputs, rotation(keys), tree_attention, error, LIMIT,
        {str(tuple(one)): one.apply for one in variants}, {"split": op.split_kernel, "combine": op.combine_kernel},
    )  # fmt: skip


if __name__ == "__main__":
    sweep(op, [case(*one) for one in CASES])
