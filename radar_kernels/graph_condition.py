"""Set the condition of a CUDA graph's node from device data: whether a loop makes another draft call, which of several
graphs follows."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from pathlib import Path

from torch import Tensor

from radar_kernels._launch import Plan, architecture, jit, next_power_of_2, tl

__all__ = ["load_graph_choice", "load_graph_condition", "set_graph_choice", "set_graph_condition"]

LIBRARY = {"radar_graph_condition": str(Path(__file__).with_name("graph_condition.ll"))}


@tl.core.extern
def _set_condition(handle, value, _semantic=None):
    return tl.core.extern_elementwise(
        "radar_graph_condition",
        "",
        [handle, value],
        {(tl.core.dtype("int64"), tl.core.dtype("int32")): ("radar_set_condition", tl.core.dtype("int32"))},
        is_pure=False,
        _semantic=_semantic,
    )


@jit
def condition_kernel(
    stop, calls, handle, batch, MAX_CALLS: tl.constexpr, BATCH_PAD: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """go = any_b(not stop[b] and calls[b] < MAX_CALLS): the cap holds whatever a policy says, so the loop ends.

    `handle` is read before the wait: it is older than the graph, and no node of the graph writes it.
    """
    b = tl.arange(0, BATCH_PAD)
    address = tl.load(handle)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    stopped = tl.load(stop + b, mask=b < batch, other=1).to(tl.int32)
    made = tl.load(calls + b, mask=b < batch, other=MAX_CALLS)
    _set_condition(address, tl.max(((stopped == 0) & (made < MAX_CALLS)).to(tl.int32), 0))


def condition_plan(*, batch: int, max_calls: int, arch: int) -> Plan:
    return Plan(
        grid=(1,),
        constants={"MAX_CALLS": max_calls, "BATCH_PAD": next_power_of_2(batch), "PDL": arch >= 90},
        options={"num_warps": 1, "extern_libs": LIBRARY} | ({"launch_pdl": True} if arch >= 90 else {}),
    )


def load_graph_condition(stop: Tensor, calls: Tensor, handle: Tensor, *, max_calls: int) -> None:
    """Compile and load the kernel of `set_graph_condition`, which may not run outside a graph, ahead of a capture."""
    plan = condition_plan(batch=stop.shape[0], max_calls=max_calls, arch=architecture(stop.device))
    kernel = condition_kernel.warmup(
        stop, calls, handle, stop.shape[0], grid=plan.grid, **plan.constants, **plan.options
    )
    kernel._init_handles()


def set_graph_condition(stop: Tensor, calls: Tensor, handle: Tensor, *, max_calls: int) -> None:
    """Go on with the loop if any row has not stopped and has made fewer than `max_calls` calls.

    For the body of a WHILE node under capture, nowhere else: see `load_graph_condition`.

    Args:
        stop: [B] bool, the policy's flags.
        calls: [B] int64, draft calls made.
        handle: [1] int64 on the device, the node's conditional handle.
    """
    plan = condition_plan(batch=stop.shape[0], max_calls=max_calls, arch=architecture(stop.device))
    plan.launch(condition_kernel, stop, calls, handle, stop.shape[0])


@jit
def choice_kernel(chosen, handle, PDL: tl.constexpr):
    """The body of that number follows. `handle` is read before the wait, as above."""
    address = tl.load(handle)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    _set_condition(address, tl.load(chosen).to(tl.int32))


def choice_plan(*, arch: int) -> Plan:
    options = {"num_warps": 1, "extern_libs": LIBRARY} | ({"launch_pdl": True} if arch >= 90 else {})
    return Plan(grid=(1,), constants={"PDL": arch >= 90}, options=options)


def load_graph_choice(chosen: Tensor, handle: Tensor) -> None:
    """As `load_graph_condition`, of `set_graph_choice`."""
    plan = choice_plan(arch=architecture(chosen.device))
    choice_kernel.warmup(chosen, handle, grid=plan.grid, **plan.constants, **plan.options)._init_handles()


def set_graph_choice(chosen: Tensor, handle: Tensor) -> None:
    """Go on with the body `chosen` [1] int64 of a SWITCH node under capture, whose handle is `handle` [1] int64."""
    choice_plan(arch=architecture(chosen.device)).launch(choice_kernel, chosen, handle)
