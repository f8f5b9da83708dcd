"""How a kernel is timed, and the tolerances that gate every figure."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.command import command_line
from radar.tools.machine import describe_machine

sys.path.append(
    str(Path(__file__).parents[1] / "tests" / "kernels")
)  # tolerances.py: one table for tests and benchmarks

ON_GPU = torch.cuda.is_available()
IMPLEMENTATIONS = ["torch", "compile", "triton"] if ON_GPU else ["torch"]
LAUNCHES = 200  # in one graph: what a replay costs the host then disappears
ROUNDS = 15


FOUND: dict[str, dict[str, Any]] = {}  # figures by benchmark


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels-out", type=Path, help="write every benchmark's figures to this file")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if out := session.config.getoption("--kernels-out"):
        device = torch.device("cuda" if ON_GPU else "cpu")
        command = command_line("pytest", session.config.invocation_params.args)
        note = "Each was checked against the reference before it was timed; inputs rotate beyond the L2 cache."
        report = {"command": command, "machine": describe_machine(device), "note": note, "rows": FOUND}
        out.write_text(json.dumps(report, indent=1) + "\n")


def implementation_of(name: str, op: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Ours, plain PyTorch, or that compiled."""
    if name == "compile":
        return torch.compile(plain, dynamic=False)
    return op if name == "triton" else plain


@pytest.fixture(scope="session")
def device() -> torch.device:
    torch.backends.cudnn.allow_tf32 = False  # float32 rows are checked as float32
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def bench_kernel(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """bench_kernel(call, inputs, bytes_moved=...) times call(*inputs[i]) over rotating inputs.

    On a GPU one round is one replay of a CUDA graph with LAUNCHES calls and one synchronisation; pass more inputs than
    the L2 cache holds to find them cold. Microseconds a call (median, minimum) and GB/s are in `benchmark.extra_info`.
    On a CPU the calls run as they are.
    """

    def run(call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], *, bytes_moved: int) -> None:
        if ON_GPU:
            launches = -(-LAUNCHES // len(inputs)) * len(inputs)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # compiles, and allocates workspaces on the stream that is captured
                for arguments in inputs[:3]:
                    call(*arguments)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for i in range(launches):
                    call(*inputs[i % len(inputs)])

            def one_round() -> None:
                graph.replay()
                torch.cuda.synchronize()
        else:
            launches = len(inputs)

            def one_round() -> None:
                for arguments in inputs:
                    call(*arguments)

        benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=2)
        median = benchmark.stats.stats.median / launches
        benchmark.extra_info |= {
            "us": round(median * 1e6, 2),
            "us_min": round(benchmark.stats.stats.min / launches * 1e6, 2),
            "GB/s": round(bytes_moved / median / 1e9, 1),
        }
        FOUND[request.node.name.removeprefix("test_")] = benchmark.extra_info

    return run


def rotation(bytes_each: int) -> int:
    """How many copies of an input exceed the L2 cache of any card, at most 320."""
    return max(2, min(320, -(-240_000_000 // bytes_each))) if ON_GPU else 2
