"""How long each kernel of an op takes, beside a chain of kernels that do nothing: what an op's time is made of.

`python -m bench.kernels.by_kernel` on a GPU. A line a case: microseconds of a call in a captured chain of 100, then of
its kernels by the profiler. With programmatic dependent launch a kernel starts before the one in front of it is done,
and its time counts from there: the kernels' sum may exceed the chain's time.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.kernels.bench_sample_tokens import SETTINGS, state_of
from bench.kernels.tuning import replay_microseconds
from radar.policy.lstm import PolicyNetwork
from radar_kernels import lstm_step, sample_tokens, topk_confidence
from radar_kernels._launch import jit, tl

CALLS = 100


@jit
def empty_kernel(cell, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if tl.program_id(0) == 0:
        tl.store(cell, tl.load(cell) + 1)


def show(call: Callable[[int], Any], **about: Any) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(4):
            call(i)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(CALLS):
            call(i)
    took = replay_microseconds(graph, CALLS)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for i in range(20):
            call(i)
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if "kernel" in event.key]
    kernels = {event.key[:60]: round(event.device_time_total / event.count, 2) for event in events}
    print(json.dumps({**about, "us": round(took, 2), "kernels": kernels}), flush=True)


def nothing(device: torch.device) -> None:
    cell = torch.zeros(1, device=device)
    for programs in (1, 132, 1056):
        for pdl in (False, True):
            options = {"launch_pdl": True} if pdl else {}

            def call(_: int, programs: int = programs, pdl: bool = pdl, options: dict[str, bool] = options) -> None:
                empty_kernel[(programs,)](cell, PDL=pdl, num_warps=4, **options)

            show(call, op="nothing", programs=programs, pdl=pdl)


def top_k(device: torch.device) -> None:
    for rows, vocabulary in ((10, 32000), (10, 128256), (1, 32000)):
        logits = [(3 * torch.randn(1, rows, vocabulary, device=device)).bfloat16() for _ in range(4)]
        parents, d2t = -torch.rand(1, rows, device=device), torch.zeros(vocabulary, dtype=torch.int64, device=device)
        show(
            lambda i, logits=logits, parents=parents, d2t=d2t: topk_confidence(logits[i % 4], parents, 10, d2t=d2t),
            op="topk_confidence", rows=rows, vocabulary=vocabulary,
        )  # fmt: skip


def policy_step(device: torch.device) -> None:
    for hidden in (64, 128, 256):
        weights = PolicyNetwork(10, hidden).weights(device)
        scores, state, cell = (torch.randn(1, size, device=device) for size in (10, hidden, hidden))
        show(
            lambda _, w=weights, s=scores, h=state, c=cell: lstm_step(s, h, c, w, update=True),
            op="lstm_step", hidden=hidden,
        )  # fmt: skip


def sampling(device: torch.device) -> None:
    vocabulary = 128256
    for rows in (60, 1):
        logits = [(3 * torch.randn(1, rows, vocabulary, device=device)).bfloat16() for _ in range(2)]
        positions = torch.arange(rows, device=device)[None]
        for name, setting in SETTINGS.items():
            state = state_of(vocabulary, device, **setting)
            show(
                lambda i, x=logits, at=positions, state=state: sample_tokens(x[i % 2], at, state),
                op="sample_tokens", rows=rows, setting=name,
            )  # fmt: skip


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    device = torch.device("cuda")
    for case in (nothing, top_k, policy_step, sampling):
        case(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
