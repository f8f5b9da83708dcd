"""A prompt's pass at the shapes of a large model: seconds and memory by length, beside stock transformers in one pass.

`python -m bench.prefill --out bench/results/round/prefill_h200.json` on a GPU; random weights.
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
from radar.tools.machine import describe_machine


def measure(run: Callable[[], object], repeats: int, weights: int) -> dict[str, float]:
    """Median wall time behind one run that compiles, and the peak of memory; `run` returns when the device is done."""
    torch.cuda.reset_peak_memory_stats()
    run()
    times: list[float] = []
    while len(times) < (repeats if sum(times) < 0.5 else 2):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() - weights
    return {"seconds": statistics.median(times), "gib_beyond_weights": round(peak / 2**30, 2)}


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
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 32768])
    parser.add_argument("--repeats", type=int, default=7, help="until half a second has gone, two at least")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    device, geometry = torch.device("cuda"), shapes[args.shapes]
    torch.manual_seed(0)
    model, draft = (make(geometry, device, torch.bfloat16) for make in (random_target, random_draft))
    weights = torch.cuda.memory_allocated()
    report: dict[str, Any] = {
        "command": command_line("bench.prefill", sys.argv[1:]), "machine": describe_machine(device),
        "shapes": geometry.name, "weights_gib": round(weights / 2**30, 2), "lengths": {},
    }  # fmt: skip
    prompts = {length: torch.randint(geometry.vocabulary, (length,)).tolist() for length in args.lengths}
    for length, prompt in prompts.items():  # before a decoder: its attention is stock
        report["lengths"][length] = {"stock": measure(partial(stock, model, prompt), args.repeats, weights)}
    torch.cuda.empty_cache()
    decoder = RadarDecoder(  # nothing else is timed; its cache counts as memory
        model, draft=draft, policy=FixedDepth(8), max_length=max(prompts) + 256, fallback=False
    )
    for length, prompt in prompts.items():
        ours = partial(decoder.generate, prompt, max_new_tokens=1, reuse_prefix=False)  # and the token on the host
        report["lengths"][length]["ours"] = measure(ours, args.repeats, weights)
        print(length, json.dumps(report["lengths"][length]), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
