"""How many nodes a policy has verified: a two-layer head over its state, the newest scores and the tree's mass."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import math

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference import NodeChoice, NodeWeights

__all__ = ["NodeChoice", "NodeWeights", "choose_nodes"]


@jit
def choose_kernel(
    hidden, scores, mass, weight0, bias0, weight3, bias3, logits, chosen, scores_b, floor,
    HIDDEN: tl.constexpr, HIDDEN_PAD: tl.constexpr, INPUTS: tl.constexpr, INPUTS_PAD: tl.constexpr,
    CHOICES: tl.constexpr, CHOICES_PAD: tl.constexpr, MIDDLE: tl.constexpr, MIDDLE_PAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """l = W3 relu(W0 [h, x, mass] + b0) + b3;  chosen = argmax l, the first of equals. Weights are read before the
    wait."""
    batch = tl.program_id(0).to(tl.int64)
    m = tl.arange(0, MIDDLE_PAD)
    h = tl.arange(0, HIDDEN_PAD)[None, :]
    i = tl.arange(0, INPUTS_PAD)[None, :]
    c = tl.arange(0, CHOICES_PAD)
    width: tl.constexpr = HIDDEN + INPUTS + CHOICES
    real = m < MIDDLE
    row = weight0 + m[:, None] * width
    w_h = tl.load(row + h, mask=real[:, None] & (h < HIDDEN), other=0.0)
    w_x = tl.load(row + HIDDEN + i, mask=real[:, None] & (i < INPUTS), other=0.0)
    w_m = tl.load(row + HIDDEN + INPUTS + c[None, :], mask=real[:, None] & (c[None, :] < CHOICES), other=0.0)
    w_out = tl.load(
        weight3 + c[:, None] * MIDDLE + m[None, :], mask=(c[:, None] < CHOICES) & (m[None, :] < MIDDLE), other=0.0
    )
    z = tl.load(bias0 + m, mask=real, other=0.0)
    out = tl.load(bias3 + c, mask=c < CHOICES, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    state = tl.load(hidden + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0)
    x = tl.load(scores + batch * scores_b + i, mask=i < INPUTS, other=0.0)
    x = tl.where(x < floor, floor, x)  # NaN stays NaN
    worth = tl.load(mass + batch * CHOICES + c, mask=c < CHOICES, other=0.0)
    z += tl.sum(w_h * state, 1) + tl.sum(w_x * x, 1) + tl.sum(w_m * worth[None, :], 1)
    z = tl.where(z < 0.0, 0.0, z)
    out += tl.sum(w_out * z[None, :], 1)
    tl.store(logits + batch * CHOICES + c, out, mask=c < CHOICES)
    best = tl.argmax(tl.where(c < CHOICES, out, -float("inf")), 0)
    tl.store(chosen + batch, best.to(tl.int64))


def choose_plan(*, batch: int, hidden: int, inputs: int, choices: int, middle: int, arch: int) -> Plan:
    return Plan(
        grid=(batch,),
        constants={
            "HIDDEN": hidden, "HIDDEN_PAD": next_power_of_2(hidden),
            "INPUTS": inputs, "INPUTS_PAD": next_power_of_2(inputs),
            "CHOICES": choices, "CHOICES_PAD": next_power_of_2(choices),
            "MIDDLE": middle, "MIDDLE_PAD": next_power_of_2(middle), "PDL": arch >= 90,
        },
        options={"num_warps": 8} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def choose_nodes(
    hidden: Tensor,
    scores: Tensor,
    mass: Tensor,
    weights: NodeWeights,
    *,
    floor: float | None = None,
    backend: Backend | None = None,
) -> NodeChoice:
    """Choose one of S numbers of nodes. All is float32.

    Args:
        hidden: [B, H], the policy's state when drafting has ended.
        scores: [B, I], cumulative log-probabilities of the newest beam.
        mass: [B, S], see `tree_mass`.
        weights: see `NodeWeights`. On a GPU they are read early, so not what the very launch in front of this one
            writes.
        floor: scores below it count as it, so that -inf can come in.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        NodeChoice(logits [B, S] float32, chosen [B] int64), the first of equals.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """

    def expect(name: str, tensor: Tensor, *shape: int) -> None:
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"choose_nodes: {name} must be float32 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )

    for name, tensor in (("hidden", hidden), ("scores", scores), ("mass", mass)):
        expect(name, tensor, len(hidden), tensor.shape[-1])
    (batch, size), inputs, choices = hidden.shape, scores.shape[1], mass.shape[1]
    middle = weights.bias0.shape[0]
    expect("weight0", weights.weight0, middle, size + inputs + choices)
    expect("bias0", weights.bias0, middle)
    expect("weight3", weights.weight3, choices, middle)
    expect("bias3", weights.bias3, choices)
    if choose_backend("choose_nodes", backend, hidden, scores, mass, *weights) == "torch":
        return reference.choose_nodes(hidden, scores, mass, weights, floor=floor)
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    logits, chosen = hidden.new_empty(batch, choices), hidden.new_empty(batch, dtype=torch.int64)
    plan = choose_plan(
        batch=batch, hidden=size, inputs=inputs, choices=choices, middle=middle, arch=architecture(hidden.device)
    )
    plan.launch(
        choose_kernel, hidden.contiguous(), scores, mass.contiguous(), *(w.contiguous() for w in weights), logits,
        chosen, scores.stride(0), -math.inf if floor is None else floor,
    )  # fmt: skip
    return NodeChoice(logits, chosen)
