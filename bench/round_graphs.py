"""What calls and verification cost inside the round's own graph, beside graphs of the parts alone.

`python -m bench.round_graphs --out bench/results/round_graphs_h200.json` on a GPU. Shapes of Llama-3.1-8B, random
weights. `bench.round` takes the parts from graphs that grow by one part after the other; here the whole round runs with
1, 4, 8 and 16 calls, lengths set back before each, and parts run once and four times in one graph. All graphs are
replayed in turn.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.models import random_draft, random_target
from bench.shapes import LLAMA_8B
from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.compare import describe_machine
from radar.engine.capture import capture, on_stream
from radar.engine.graph import GraphEngine

PREFIX = 1024
CALLS = (1, 4, 8, 16)


def milliseconds(replay: Callable[[], object], count: int) -> float:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(count):
        replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / count


def part_graphs(engine: GraphEngine, restore: Callable[[], None]) -> dict[str, torch.cuda.CUDAGraph]:
    """Graphs of parts, each behind `restore`."""
    steps = engine.steps
    chosen: list[torch.Tensor] = []

    def verify(times: int) -> None:
        for _ in range(times):
            chosen[:] = [steps.verify()]

    def draft(calls: int) -> None:
        steps.begin()
        for _ in range(calls - 1):
            steps.step()

    def whole(calls: int) -> None:
        draft(calls)
        for _ in range(calls):
            steps.stop()
        steps.select()
        verify(1)
        steps.accept(chosen[0])
        steps.commit()

    parts: dict[str, Callable[[], object]] = {
        "all parts, 8 calls": lambda: whole(8),
        "all parts, 1 call": lambda: whole(1),
        "verify": lambda: verify(1),
        "verify, 4 times": lambda: verify(4),
        "draft, 8 calls": lambda: draft(8),
        "draft, 16 calls": lambda: draft(16),
    }
    found = {}
    for name, part in parts.items():

        def work(part: Callable[[], object] = part) -> None:
            restore()
            part()

        on_stream(engine.stream, work)
        found[name] = capture(work, engine.stream, generator=engine.generator)
    return found


@torch.inference_mode()
def measure(decoder: RadarDecoder, turns: int) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of every graph."""
    engine: Any = decoder.engine
    whole = {}
    for calls in CALLS:  # the graphs of four policies are kept
        engine.set_policy(FixedDepth(calls))
        engine.prepare()
        whole[calls] = engine._current

    def restore() -> None:
        engine.target.cache.length.fill_(PREFIX)
        engine.drafter.cache.length.fill_(PREFIX - 1)
        engine.steps.count.fill_(1)

    def one_round(graph: torch.cuda.CUDAGraph) -> None:
        restore()
        graph.replay()

    replays: dict[str, Callable[[], object]] = {n: g.replay for n, g in part_graphs(engine, restore).items()}
    for calls, captured in whole.items():
        replays[f"round of {calls}"] = lambda graph=captured.whole: one_round(graph)
    times: dict[str, list[float]] = {name: [] for name in replays}
    for turn in range(turns + 2):  # the first two warm up
        for name, replay in replays.items():
            took = milliseconds(replay, 5)
            if turn > 1:
                times[name].append(took)
    return {name: {"median": statistics.median(values), "lowest": min(values)} for name, values in times.items()}


def derive(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Slopes and remainders of the medians."""
    ms = {name: values["median"] for name, values in found.items()}
    return {
        "call_in_a_round": (ms["round of 16"] - ms["round of 8"]) / 8,
        "call_in_a_graph_of_calls": (ms["draft, 16 calls"] - ms["draft, 8 calls"]) / 8,
        "verification_behind_another": (ms["verify, 4 times"] - ms["verify"]) / 3,
        "all_parts_over_round": ms["all parts, 8 calls"] / ms["round of 8"] - 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=23)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = random_target(LLAMA_8B, device, torch.bfloat16)
    draft = random_draft(LLAMA_8B, device, torch.bfloat16)
    decoder = RadarDecoder(
        model, draft=draft, policy=FixedDepth(8), tree=TreeConfig(), max_length=8704, fallback=False
    )  # fmt: skip
    found = measure(decoder, args.turns)
    report = {
        "command": command_line("bench.round_graphs", sys.argv[1:]),
        "machine": describe_machine(device),
        "prefix": PREFIX,
        "milliseconds": found,
        "derived": derive(found),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
