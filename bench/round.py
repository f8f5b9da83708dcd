"""A round by parts, a token of plain decoding, and the cost of deciding, at the shapes of a large model.

`python -m bench.round --out bench/results/round_h200.json` on a GPU; random weights, so acceptance means nothing here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.command import command_line
from bench.models import random_draft, random_target
from bench.shapes import GEOMETRIES, TINY, Geometry
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, SamplingParams, TreeConfig
from radar.policy.network import PolicyNetwork
from radar.tools.machine import describe_machine
from radar.tools.profile import profile_round

ROUNDS = 40


class RadarTo(RadarPolicy):
    """Runs the whole network at every call and stops where `FixedDepth` stops: the same rounds, plus the decision."""

    def __init__(self, calls: int) -> None:
        super().__init__(PolicyNetwork())
        self.fixed = FixedDepth(calls)

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        super().bind(batch_size, tree, device)
        self.fixed.bind(batch_size, tree, device)

    def reset(self) -> None:
        super().reset()
        self.fixed.reset()

    def stop(self, scores: Tensor) -> Tensor:
        super().stop(scores)
        return self.fixed.stop(scores)


def wall_per_round(decoder: Any, prompt: list[int], sampling: SamplingParams | None = None) -> float:
    """Milliseconds of wall time per round or token of a real decoding loop, the prompt's pass excluded.

    A round is launched before the one in front of it is handed out. So the clock starts when a round is handed out, and
    stops when the last one is; had the device been waited for at the start, one round would have been done for nothing.
    """
    rounds = decoder.rounds(prompt, max_new_tokens=20 * ROUNDS, sampling=sampling)
    for _ in range(5):
        next(rounds)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        next(rounds)
    elapsed = time.perf_counter() - started
    rounds.close()
    return 1000 * elapsed / ROUNDS


@torch.inference_mode()
def gpu_per_round(engine: Any, repeats: int = 20) -> float:
    """Milliseconds of GPU time of the round's graph, launched back to back."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    engine.discard()  # a closed generation leaves one launched, in whose place `launch_next` launches none
    before.record()
    for _ in range(repeats):
        engine.launch_next()
        engine.discard()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / repeats


def syncs_per_round(decoder: Any, prompt: list[int], trace: Path | None) -> dict[str, Any]:
    """Calls by which the host launches and waits, from a profiler trace of ten rounds.

    Every round ends with one wait, for its result; what waits beyond that would be inside of a round.
    """
    rounds = decoder.rounds(prompt, max_new_tokens=20 * ROUNDS)
    for _ in range(4):
        next(rounds)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(10):
            next(rounds)
    rounds.close()
    calls: dict[str, int] = {}
    for event in profiler.events():
        if event.name.startswith(("cuda", "cu")) and event.device_type == torch.autograd.DeviceType.CPU:
            calls[event.name] = calls.get(event.name, 0) + 1
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    # the profiler itself waits for the device once, at its end
    waits = sum(count for name, count in calls.items() if "Synchronize" in name and name != "cudaDeviceSynchronize")
    return {"calls_in_10_rounds": calls, "waits_inside_a_round": (waits - 10) / 10}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def start(geometry: Geometry, args: argparse.Namespace) -> float:
    """Seconds from a loaded pair to the first token of RADAR, as users meet it: with the fallback's plain step."""
    model, draft = (make(geometry, torch.device("cuda"), torch.bfloat16) for make in (random_target, random_draft))
    prompt = torch.randint(0, geometry.vocabulary, (args.prefix[0],)).tolist()
    torch.cuda.synchronize()
    started = time.perf_counter()
    decoder = RadarDecoder(model, draft=draft, policy=RadarPolicy(PolicyNetwork()), max_length=args.max_length)
    next(decoder.rounds(prompt, max_new_tokens=64))
    return time.perf_counter() - started


def starts() -> dict[str, float]:
    """`start` in two new processes: nothing is compiled, and then everything."""
    command = [sys.executable, "-m", "bench.round", *sys.argv[1:], "--start-only"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache}
        runs = (subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True) for _ in range(2))
        first, second = (json.loads(run.stdout)["start_s"] for run in runs)
    return {"start_first_s": first, "start_second_s": second}


def measure(geometry: Geometry, args: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Hands what is known so far to `save`, again and again: a run that is cut off has not been for nothing."""
    device = torch.device("cuda")
    dtype = torch.bfloat16
    torch.manual_seed(0)
    model = random_target(geometry, device, dtype)
    draft = random_draft(geometry, device, dtype)
    tree = TreeConfig()
    options: dict[str, Any] = {"max_length": args.max_length}
    fixed, radar = FixedDepth(8), RadarTo(8)
    plain = AutoregressiveDecoder(model, **options)
    decoder = RadarDecoder(model, policy=fixed, draft=draft, tree=tree, fallback=False, **options)
    out: dict[str, Any] = {"engine": decoder.engine_name}
    prompt = torch.randint(0, geometry.vocabulary, (args.prefix[0],)).tolist()

    series: dict[str, list[float]] = {"ar": [], "fixed8": [], "radar8": [], "fixed8_gpu": [], "radar8_gpu": []}
    series |= {"radar8_t1": [], "radar8_t1_gpu": []}
    for _ in range(args.repeats):
        series["ar"].append(wall_per_round(plain, prompt))
        for name, policy in (("fixed8", fixed), ("radar8", radar)):
            decoder.policy = policy
            series[name].append(wall_per_round(decoder, prompt))
            series[f"{name}_gpu"].append(gpu_per_round(decoder.engine))
        series["radar8_t1"].append(wall_per_round(decoder, prompt, SamplingParams(temperature=1.0, seed=0)))
        series["radar8_t1_gpu"].append(gpu_per_round(decoder.engine))
    out["milliseconds"] = {name: spread(values) for name, values in series.items()}
    out["decision_us"] = (
        1000 * (out["milliseconds"]["radar8_gpu"]["median"] - out["milliseconds"]["fixed8_gpu"]["median"]) / 8
    )
    # what the host adds to a round: launching, waiting, reading, and what the loop does with the tokens
    out["host_us"] = 1000 * (out["milliseconds"]["fixed8"]["median"] - out["milliseconds"]["fixed8_gpu"]["median"])
    save(out)
    decoder.policy = radar
    out["syncs"] = syncs_per_round(decoder, prompt, args.trace)
    out["parts"] = []
    for prefix in args.prefix:
        profile = profile_round(decoder.engine, prefix=prefix, calls=8, repeats=args.repeats * 4)
        out["parts"].append(profile.to_dict())
        out["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        save(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    shapes = {g.name: g for g in (*GEOMETRIES, TINY)}
    parser.add_argument("--shapes", choices=sorted(shapes), default="Llama-3.1-8B")
    parser.add_argument("--prefix", type=int, nargs="+", default=[1024, 8192], help="committed tokens")
    parser.add_argument("--max-length", type=int, default=8704)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--starts", action="store_true", help="a first and a second start alone, in new processes")
    parser.add_argument("--start-only", action="store_true", help="a start alone, in this process")
    parser.add_argument("--trace", type=Path, help="write a trace of ten rounds, for chrome://tracing or Perfetto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"command": command_line("bench.round", sys.argv[1:])}
    report["machine"] = describe_machine(torch.device("cuda"))

    def save(found: dict[str, Any]) -> None:
        report.update(found)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")

    if args.start_only:
        save({"start_s": round(start(shapes[args.shapes], args), 2)})
    elif args.starts:
        save(starts())
    else:
        measure(shapes[args.shapes], args, save)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
