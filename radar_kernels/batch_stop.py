"""The decision of a batch: which rows go on drafting, once each has said whether it would."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl

__all__ = ["batch_stop"]


@jit
def batch_stop_kernel(stop, alive, active, stopped, few, rows, ROWS: tl.constexpr, PDL: tl.constexpr):
    """alive &= not stop, for none if few * their number < that of the active rows; stopped = not alive."""
    i = tl.arange(0, ROWS)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    live = tl.load(alive + i, mask=i < rows, other=0).to(tl.int32)
    live = tl.where(tl.load(stop + i, mask=i < rows, other=1).to(tl.int32) > 0, 0, live)
    texts = tl.sum(tl.load(active + i, mask=i < rows, other=0).to(tl.int32), 0)
    live = tl.where(tl.sum(live, 0) * few < texts, 0, live)
    tl.store(alive + i, live > 0, mask=i < rows)
    tl.store(stopped + i, live == 0, mask=i < rows)


def batch_stop_plan(*, rows: int, arch: int) -> Plan:
    return Plan(
        grid=(1,),
        constants={"ROWS": next_power_of_2(rows), "PDL": arch >= 90},
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def batch_stop(stop: Tensor, alive: Tensor, active: Tensor, *, few: int, backend: Backend | None = None) -> Tensor:
    """Rows that stop are no longer alive, and none is once those that are left are few: a draft call costs the same for
    one row as for all.

    Args:
        stop: [B] bool, each row's own verdict.
        alive: [B] bool, the rows that have drafted up to now; changed in place.
        active: [B] bool, the rows that hold a text.
        few: less than one in so many active rows is too few.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        [B] bool, the rows that are not alive.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.
    """
    for name, flags in (("stop", stop), ("alive", alive), ("active", active)):
        if flags.shape != stop.shape or stop.dim() != 1 or flags.dtype != torch.bool or not flags.is_contiguous():
            raise ValueError(
                f"batch_stop: {name} must be contiguous bool [{len(stop) if stop.dim() else 'B'}], got {flags.dtype} "
                f"{tuple(flags.shape)}"
            )
    if choose_backend("batch_stop", backend, stop, alive, active) == "torch":
        return reference.batch_stop(stop, alive, active, few=few)
    stopped = torch.empty_like(alive)
    plan = batch_stop_plan(rows=len(stop), arch=architecture(stop.device))
    plan.launch(batch_stop_kernel, stop, alive, active, stopped, few, len(stop))
    return stopped
