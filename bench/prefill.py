"""A prompt's pass at the shapes of a large model: seconds and memory by length, beside stock transformers in one pass.

`python -m bench.prefill --out bench/results/prefill_h200.json` on a GPU; random weights. `--chunks 256 64,256` compares
sets of chunk sizes, each prompt through all of them in turn.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from bench.command import command_line
from bench.models import random_draft, random_target
from bench.shapes import GEOMETRIES, TINY
from radar import FixedDepth, RadarDecoder
from radar.engine import prefill
from radar.tools.machine import describe_machine

FROM = {64: 1, 256: 65, 1024: 769}  # tokens from which on a size is the quickest on an H200


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time behind one run that compiles; `run` returns when the device is done."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def ours(decoder: RadarDecoder, prompt: list[int]) -> None:
    """The pass of target and draft head, and the first token on the host."""
    decoder.generate(prompt, max_new_tokens=1, reuse_prefix=False)


@torch.inference_mode()
def stock(model: Any, prompt: list[int]) -> None:
    """The target alone, whole prompt at once, scaled_dot_product_attention, last logits."""
    ids = torch.tensor([prompt], device=model.device)
    out = model(ids, past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1)
    int(out.logits.argmax())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    shapes = {g.name: g for g in (*GEOMETRIES, TINY)}
    parser.add_argument("--shapes", choices=sorted(shapes), default="Llama-3.1-8B")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    default = ",".join(map(str, prefill.SIZES["cuda"]))
    parser.add_argument("--chunks", nargs="+", default=[default], metavar="ROWS,ROWS", help="sizes of the chunks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if wrong := [size for chunks in args.chunks for size in chunks.split(",") if size not in map(str, FROM)]:
        parser.error(f"--chunks takes sizes of {', '.join(map(str, FROM))}, got {wrong[0]!r}")
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    device, dtype, geometry = torch.device("cuda"), torch.bfloat16, shapes[args.shapes]
    torch.manual_seed(0)
    model, draft = random_target(geometry, device, dtype), random_draft(geometry, device, dtype)
    weights = torch.cuda.memory_allocated()
    report: dict[str, Any] = {
        "command": command_line("bench.prefill", sys.argv[1:]), "machine": describe_machine(device),
        "shapes": geometry.name, "weights_gib": round(weights / 2**30, 2), "lengths": {},
    }  # fmt: skip
    prompts = {length: torch.randint(geometry.vocabulary, (length,)).tolist() for length in args.lengths}
    for length, prompt in prompts.items():
        torch.cuda.reset_peak_memory_stats()
        took = seconds(partial(stock, model, prompt), args.repeats)
        peak = torch.cuda.max_memory_allocated() - weights
        report["lengths"][length] = {"stock_seconds": took, "stock_gib_beyond_weights": round(peak / 2**30, 2)}
    torch.cuda.empty_cache()
    for length, prompt in prompts.items():
        report["lengths"][length]["by_chunks"] = {}
        for chunks in args.chunks:
            sizes = sorted(map(int, chunks.split(",")))
            prefill.SIZES["cuda"] = {size: FROM[size] if size > sizes[0] else 1 for size in sizes}
            torch.cuda.reset_peak_memory_stats()
            decoder = RadarDecoder(  # a prompt's pass is not compiled, and nothing else is timed
                model, draft=draft, policy=FixedDepth(8), max_length=length + 256, compile=False, fallback=False
            )
            took = seconds(partial(ours, decoder, prompt), args.repeats)
            peak = torch.cuda.max_memory_allocated() - weights
            row = {"seconds": took, "tokens_per_second": length / took, "gib_beyond_weights": round(peak / 2**30, 2)}
            print(length, chunks, json.dumps(row), flush=True)
            report["lengths"][length]["by_chunks"][chunks] = row
            del decoder
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
