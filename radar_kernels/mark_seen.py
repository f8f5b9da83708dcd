"""Note tokens in a text's history of bits."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference_sampling
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, tl

__all__ = ["mark_seen"]

BLOCK = 64  # tokens of a program


@jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator]  # one kernel for prompts of all lengths
def mark_kernel(tokens, count, seen, length, words, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """seen[t >> 5] |= 1 << (t & 31) for the first `count` tokens t of a row that are tokens."""
    batch = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    counted = i < tl.minimum(tl.load(count + batch), length)
    token = tl.load(tokens + batch * length + i, mask=counted, other=-1).to(tl.int32)
    valid = token >= 0
    bit = tl.full([BLOCK], 1, tl.int32) << (token & 31)
    tl.atomic_or(seen + batch * words + (token >> 5), bit, mask=valid)


def mark_plan(*, batch: int, length: int, arch: int) -> Plan:
    return Plan(
        grid=(-(-length // BLOCK), batch),
        constants={"BLOCK": BLOCK, "PDL": arch >= 90},
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


@torch.library.custom_op("radar_kernels::mark_seen", mutates_args=("seen",))
def _launch(seen: Tensor, tokens: Tensor, count: Tensor) -> None:
    batch, length = tokens.shape
    plan = mark_plan(batch=batch, length=length, arch=architecture(tokens.device))
    plan.launch(mark_kernel, tokens, count, seen, length, seen.shape[1])


@_launch.register_fake
def _(seen: Tensor, tokens: Tensor, count: Tensor) -> None:
    return None


def mark_seen(seen: Tensor, tokens: Tensor, count: Tensor, *, backend: Backend | None = None) -> None:
    """Set the bits of each sequence's first `count` tokens; the same token twice is as good as once.

    Args:
        seen: [B, W] int32, contiguous, changed in place; bit c of word w is token 32 w + c.
        tokens: [B, A] int64, up to 32 W - 1 where they count, anything behind; negative ones (NO_TOKEN) are skipped.
        count: [B] int64, from 0 to A.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """

    def fail(message: str) -> None:
        raise ValueError(f"mark_seen: {message}")

    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.shape[1] < 1:
        fail(f"tokens must be int64 [B, A] with A >= 1, got {tokens.dtype} {list(tokens.shape)}")
    batch = tokens.shape[0]
    if seen.dim() != 2 or seen.shape[0] != batch or seen.dtype != torch.int32 or not seen.is_contiguous():
        fail(f"seen must be contiguous int32 [{batch}, W], got {seen.dtype} {list(seen.shape)}")
    if count.shape != (batch,) or count.dtype != torch.int64:
        fail(f"count must be int64 [{batch}], got {count.dtype} {list(count.shape)}")
    if choose_backend("mark_seen", backend, seen, tokens, count) == "torch":
        reference_sampling.mark_seen(seen, tokens, count)
    else:
        _launch(seen, tokens.contiguous(), count.contiguous())
