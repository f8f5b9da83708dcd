"""The sweeps' loop: compile many variants of an op at once, check each, time it in a captured graph. Needs a GPU."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

__all__ = ["Case", "sweep"]

LAUNCHES = 100  # in a graph, at the least
Launch = tuple[Any, Any, tuple[Any, ...]]  # kernel, plan, arguments


class Case(NamedTuple):
    """One shape of an op.

    Attributes:
        make: so many inputs of `call`; what is to be cold takes as many as the L2 cache does not hold.
        copies: how many that is.
        error: of a result, against the reference on the first inputs; above `limit` a variant is not timed.
        variants: what puts each in place, by its label.
        parts: kernels that are timed alone as well, by name.
    """

    name: str
    make: Callable[[int], list[tuple[Any, ...]]]
    copies: int
    call: Callable[..., Any]
    error: Callable[[Any, tuple[Any, ...]], float]
    limit: float
    variants: Mapping[str, Callable[[], None]]
    parts: Mapping[str, Any]


def sweep(op: ModuleType, cases: Iterable[Case]) -> None:
    """Every variant of every case, and the op as it is, to a table and to the file that the command line names.

    Args:
        op: the kernel's module; what variants change in it is put back after each.
    """
    command = f"python -m bench.kernels.tune_{op.__name__.rpartition('.')[2]}"
    if len(sys.argv) != 2:
        sys.exit(f"usage: {command} RESULTS.json")
    torch.manual_seed(0)
    whole, launch = dict(vars(op)), op.Plan.launch
    cases = list(cases)

    def restore() -> None:
        vars(op).update(whole)
        op.Plan.launch = launch

    _compile(op, cases, restore)
    rows: list[dict[str, Any]] = []
    result = {"command": command, "hardware": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    for case in cases:
        inputs = case.make(case.copies)
        print(f"{case.name}: us", *case.parts, flush=True)
        for label, apply in {"as chosen": restore, **case.variants}.items():
            restore()
            apply()
            row = {"case": case.name, "variant": label, **_measure(op, case, inputs)}
            restore()
            rows.append(row)
            times = "  ".join(f"{row['us'].get(name, float('nan')):6.2f}" for name in ("whole", *case.parts))
            print(f"  {times}  error {row['error']:.1e}  {label}  {row.get('problem', '')}", flush=True)
        del inputs
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")  # after each: a run may be cut short


def _measure(op: ModuleType, case: Case, inputs: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Its error first: what is wrong is not timed."""
    row: dict[str, Any] = {"error": float("nan"), "us": {}}
    try:
        row["error"] = case.error(case.call(*inputs[0]), inputs[0])
        if row["error"] <= case.limit:
            row["us"]["whole"] = _microseconds(op, case.call, inputs)
            row["us"] |= {
                name: _microseconds(op, case.call, inputs, only=kernel) for name, kernel in case.parts.items()
            }
    except Exception as problem:  # too much shared memory, for one
        row["problem"] = str(problem)[:200]
    return row


def _compile(op: ModuleType, cases: Sequence[Case], restore: Callable[[], None]) -> None:
    """Record the launches that Triton would compile anew, run none, and compile them side by side."""
    launches: dict[tuple[Any, ...], Launch] = {}

    def record(plan: Any, kernel: Any, *arguments: Any) -> None:
        kinds = tuple((a == 1, a % 16) if isinstance(a, int) else getattr(a, "base", a).dtype for a in arguments)
        launches[kernel.fn.__name__, str(plan.constants), str(plan.options), kinds] = (kernel, plan, arguments)

    def compile_one(launch: Launch) -> None:
        kernel, plan, arguments = launch
        try:
            kernel.warmup(*arguments, grid=plan.grid, **plan.constants, **plan.options)
        except Exception as problem:  # its variant will say so again
            print(f"{kernel.fn.__name__} {plan.constants}: {str(problem)[:200]}", flush=True)

    for case in cases:
        inputs = case.make(1)[0]
        for apply in (restore, *case.variants.values()):
            restore()
            apply()
            op.Plan.launch = record
            case.call(*inputs)
            restore()
    started = time.perf_counter()
    for launch in {launch[0]: launch for launch in launches.values()}.values():
        compile_one(launch)  # one of each first: it sets up what the others share
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(compile_one, launches.values()))
    print(f"{len(launches)} kernels compiled in {time.perf_counter() - started:.0f} s", flush=True)


def _microseconds(
    op: ModuleType, call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], *, only: Any = None
) -> float:
    """A call's time in a graph that rotates through the inputs: median of seven replays, after one that does not count.

    With `only`, of that kernel alone; None: of all that the call launches.
    """
    launch = op.Plan.launch
    if only is not None:
        op.Plan.launch = lambda plan, kernel, *given: launch(plan, kernel, *given) if kernel is only else None
    count = -(-LAUNCHES // len(inputs)) * len(inputs)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):  # what is set up at the first call
        call(*inputs[0])
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            call(*inputs[i % len(inputs)])
    op.Plan.launch = launch
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(8):
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / count)
    return sorted(times[1:])[3]
