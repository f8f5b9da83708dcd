"""What a draft expects of its own tree: the summed probability of the best nodes, for several numbers of them."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_tree
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.select_nodes import MAX_SLOTS, order_key, worst_of_best

__all__ = ["tree_mass"]


@jit
def tree_mass_kernel(
    scores, nodes, mass, scores_b, slots, CHOICES: tl.constexpr, SLOTS_PAD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Sum of exp(score) over the best `nodes[choice] - 1` slots of a row; `nodes` is read before the wait."""
    LOWEST: tl.constexpr = -0x80000000
    HIGHEST: tl.constexpr = 0x7FFFFFFF
    batch = tl.program_id(0).to(tl.int64)
    choice = tl.program_id(1)
    s = tl.arange(0, SLOTS_PAD)
    wanted = tl.load(nodes + choice) - 1
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    score = tl.load(scores + batch * scores_b + s, mask=s < slots, other=-float("inf"))
    real = score > -float("inf")
    key = order_key(score)
    low = tl.min(tl.where(real, key, HIGHEST)).to(tl.int64)
    key = tl.where(real, key, LOWEST)
    bound = worst_of_best(key, low, tl.max(key).to(tl.int64), tl.sum(real.to(tl.int32)), wanted)
    better = real & (key > bound)
    equal = real & (key == bound)
    share = tl.exp(score)
    spare = tl.minimum(wanted - tl.sum(better.to(tl.int32)), tl.sum(equal.to(tl.int32)))
    worst = tl.max(tl.where(equal, share, 0.0))
    tl.store(mass + batch * CHOICES + choice, tl.sum(tl.where(better, share, 0.0)) + worst * spare.to(tl.float32))


def tree_mass_plan(*, batch: int, slots: int, choices: int, arch: int) -> Plan:
    slots_pad = max(next_power_of_2(slots), 32)
    return Plan(
        grid=(batch, choices),
        constants={"CHOICES": choices, "SLOTS_PAD": slots_pad, "PDL": arch >= 90},
        options={"num_warps": min(max(slots_pad // 256, 1), 8)} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def tree_mass(scores: Tensor, nodes: Tensor, *, backend: Backend | None = None) -> Tensor:
    """The draft tokens that would be accepted by the draft's own probabilities, if so many of the best were verified.

    Args:
        scores: [B, C] float32, cumulative log-probabilities of a tree's candidates; -inf where there is none; C is
            at most 4096.
        nodes: [S] int32, numbers of verified nodes, the root included, which adds nothing. On a GPU they are read
            early, so not what the very launch in front of this one writes.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [B, S] float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: OPT-Tree (arXiv 2406.17276): the expected accepted length of a tree is the sum of its nodes' probabilities.
    """
    if scores.dim() != 2 or scores.dtype != torch.float32 or not 1 <= scores.shape[1] <= MAX_SLOTS:
        raise ValueError(
            f"tree_mass: scores must be float32 [B, C] with C from 1 to {MAX_SLOTS}, got {scores.dtype} "
            f"{tuple(scores.shape)}"
        )
    if nodes.dim() != 1 or nodes.dtype != torch.int32 or not len(nodes):
        raise ValueError(f"tree_mass: nodes must be int32 [S], got {nodes.dtype} {tuple(nodes.shape)}")
    if choose_backend("tree_mass", backend, scores, nodes) == "torch":
        return reference_tree.tree_mass(scores, nodes)
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    (batch, slots), choices = scores.shape, len(nodes)
    mass = scores.new_empty(batch, choices)
    plan = tree_mass_plan(batch=batch, slots=slots, choices=choices, arch=architecture(scores.device))
    plan.launch(tree_mass_kernel, scores, nodes.contiguous(), mass, scores.stride(0), slots)
    return mass
