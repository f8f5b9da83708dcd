"""The decision of a stop rule that compares the beam's summed probability with a bound."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl

__all__ = ["mass_stop"]


@jit
def mass_kernel(
    scores, bounds, call, stop, scores_b, last, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """stop = sum exp(scores) < bounds[min(call, last)], or that bound is inf; call += 1."""
    batch = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, WIDTH_PAD)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    made = tl.load(call + batch)
    score = tl.load(scores + batch * scores_b + i, mask=i < WIDTH, other=-float("inf"))
    bound = tl.load(bounds + tl.minimum(made, last))
    mass = tl.sum(tl.exp(score), 0)
    tl.store(stop + batch, (mass < bound) | (bound == float("inf")))
    tl.store(call + batch, made + 1)


def mass_plan(*, batch: int, width: int, arch: int) -> Plan:
    return Plan(
        grid=(batch,),
        constants={"WIDTH": width, "WIDTH_PAD": next_power_of_2(width), "PDL": arch >= 90},
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def mass_stop(scores: Tensor, bounds: Tensor, call: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Stop where a level's probabilities sum up to less than the bound of this call, and count the call, in place.

    Args:
        scores: [B, k] float32, cumulative log-probabilities of the level's beam.
        bounds: [C] float32, of the first call and those after it; the last one is that of all further calls. 0 never
            stops, inf always does.
        call: [B] int64, calls decided before; incremented.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        Stop flags [B] bool.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: DDD (arXiv 2409.00142); a fixed depth is bounds of 0 and inf.
    """

    def fail(message: str) -> None:
        raise ValueError(f"mass_stop: {message}")

    if scores.dim() != 2 or scores.dtype != torch.float32 or not scores.shape[1]:
        fail(f"scores must be float32 [B, k], got {scores.dtype} {tuple(scores.shape)}")
    if bounds.dim() != 1 or bounds.dtype != torch.float32 or not len(bounds):
        fail(f"bounds must be float32 [C], got {bounds.dtype} {tuple(bounds.shape)}")
    if call.shape != scores.shape[:1] or call.dtype != torch.int64 or not call.is_contiguous():
        fail(f"call must be contiguous int64 [{len(scores)}], got {call.dtype} {tuple(call.shape)}")
    if choose_backend("mass_stop", backend, scores, bounds, call) == "torch":
        return reference.mass_stop(scores, bounds, call)
    batch, width = scores.shape
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    stop = torch.empty(batch, dtype=torch.bool, device=scores.device)
    plan = mass_plan(batch=batch, width=width, arch=architecture(scores.device))
    plan.launch(mass_kernel, scores, bounds.contiguous(), call, stop, scores.stride(0), len(bounds) - 1)
    return stop
