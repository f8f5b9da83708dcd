"""Many texts at once: tokens per second of plain decoding, EAGLE-3, a threshold and RADAR by number of rows.

`python -m bench.batch --prompts FILES --out bench/results/batch/h200.json` on a GPU: the embedded pair at the shapes of
Llama-3.1-8B. As many texts as rows are under way at any time, another one joins when one ends; the rate is that of the
time when all rows are taken, prompts included. All texts are compared with those of plain decoding. One flat object.
"""

import argparse
import json
import sys
import time
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.command import command_line
from bench.lab.widen import widen
from bench.shapes import LLAMA_8B
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine import budget
from radar.engine.fallback import Fallback
from radar.engine.plain_rows import PlainRows
from radar.engine.prefill import chunk_sizes
from radar.engine.round_rows import RoundRows
from radar.generation.batch import Batch
from radar.generation.request import Request
from radar.generation.sequence import Sequence
from radar.target.model import TargetModel
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

MAX_LENGTH = 1024


class Cell(NamedTuple):
    """What `decode` has seen."""

    texts: list[list[int]]
    tokens: int
    seconds: float
    steps: int
    rate: float  # tokens a second of all texts, with the time in which rows were free


def decode(engine: Any, requests: list[Request], rows: int) -> Cell:
    """All texts; and how many tokens were made, in which time and steps, while all rows were taken: from the first
    token of the last text that found a free row to that of the last one of all, so that a prompt comes in for each text
    that ends."""
    batch, waiting, texts = Batch(engine), list(requests), []
    marks: list[tuple[float, int, int]] = []
    started, steps = time.perf_counter(), 0
    while waiting or batch.has_work:
        while waiting and sum(not text.has_ended for text in texts) < rows:
            texts.append(Sequence(waiting.pop(0), lambda _: None, lambda _: None, engine.target.device))
            batch.add(texts[-1])
        batch.step()
        steps += 1
        last = texts[rows - 1] if not marks and len(texts) >= rows else texts[-1]
        if len(marks) < (1 if waiting else 2) and len(texts) >= rows and last.token_ids:
            marks.append((time.perf_counter(), sum(len(text.token_ids) for text in texts), steps))
    (begun, before, first), (ended, after, final) = marks
    made = [text.token_ids for text in texts]
    rate = sum(map(len, made)) / (time.perf_counter() - started)
    return Cell(made, after - before, ended - begun, final - first, rate)


def count_of(rows: int) -> int:
    """Texts of a cell."""
    return max(16, 3 * rows)


def alone(decoder: Any, requests: list[Request]) -> tuple[list[list[int]], float]:
    """The same by the engine of one row."""
    begun = time.perf_counter()
    texts = [decoder.run(request).token_ids for request in requests]
    return texts, time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    small, tree, most = RadarDecoder.from_pretrained(device=device, dtype=dtype), TreeConfig(), max(args.rows)
    pair = widen(small.model, small.draft, LLAMA_8B, device=device, dtype=dtype) if graphs else small
    lines = [load_prompts(file, limit=4 * most) for file in args.prompts]
    prompts = [encode_prompt(line, small.tokenizer) for both in zip(*lines, strict=False) for line in both]
    ends = frozenset(small.eos_token_ids)
    sizes: dict[str, Any] = {"max_length": MAX_LENGTH, "max_rows": max(chunk_sizes(device))}
    one: dict[str, Any] = {"max_length": MAX_LENGTH, "tokenizer": small.tokenizer}

    def engine_of(policy: Any, rows: int) -> RoundRows:
        taps = pair.draft.config.eagle_aux_hidden_state_layer_ids
        target = TargetModel(pair.model, tap_layers=taps, batch_size=rows + 1, **sizes)
        embed = target.embed_tokens if pair.draft.embed_tokens is None else pair.draft.embed_tokens
        drafter = Eagle3Drafter(pair.draft, embed, tree, batch_size=rows + 1, **sizes)
        return RoundRows(target, drafter, policy, tree, graphs=graphs, fallback=True)

    with torch.inference_mode():
        plain = PlainRows(TargetModel(pair.model, tap_layers=(), batch_size=most + 1, **sizes), graphs=graphs)
        begun = time.perf_counter()
        rounds = engine_of(FixedDepth(8), most)
        start = time.perf_counter() - begun
    single = AutoregressiveDecoder(pair.model, **one)
    radar = RadarDecoder(pair.model, draft=pair.draft, policy=small.policy, tree=tree, fallback=False, **one)
    policies = {"eagle3": FixedDepth(8), "threshold": Threshold(0.2), "radar": small.policy}
    budget.NODES, budget.CALLS, budget.CARRIED = {1: 60 * 8}, 8 * 8, {}  # EAGLE-3 as published
    with torch.inference_mode():
        engines: dict[str, Any] = {"plain": plain, "eagle3_60": engine_of(FixedDepth(8), 8)} | dict.fromkeys(
            policies, rounds
        )
    report: dict[str, Any] = {"command": command_line("bench.batch", sys.argv[1:])} | describe_machine(device)
    report["start_s"] = round(start, 1)
    keys = {f"t{temperature:g}": temperature for temperature in args.temperatures}
    asked_for, expected = {}, {}
    for key, temperature in keys.items():
        requests = asked_for[key] = [
            Request(prompt, args.tokens, SamplingParams(temperature=temperature, seed=number), ends)
            for number, prompt in enumerate(prompts)
        ]
        with torch.inference_mode():
            expected[key] = decode(plain, requests[: count_of(most)], most).texts
        for name, decoder in (("plain", single), ("radar", radar)):
            alone(decoder, requests[:1])
            texts, seconds = alone(decoder, requests[: count_of(1)])
            if (equal := sum(map(eq, texts, expected[key]))) < len(texts):
                print(
                    f"{name} alone: {equal} of {len(texts)} texts are those of {most} rows: no figure", file=sys.stderr
                )
                return 1
            report[f"{name}_alone_{key}"] = round(sum(map(len, texts)) / seconds, 1)
    for name, engine in engines.items():
        if name in policies:
            rounds.set_policy(policies[name])
        if name != "plain":
            for width in engine.widths:  # RADAR as it ships; the others are what they are called
                width.fallback = Fallback() if name == "radar" else None
        for key, requests in asked_for.items():
            for rows in args.rows if name != "eagle3_60" else [8]:
                asked = requests[: count_of(rows)]
                with torch.inference_mode():
                    decode(engine, asked[:2], 1)  # takes the policy
                    made = decode(engine, asked, rows)
                equal, cell = sum(map(eq, made.texts, expected[key])), f"{name}_b{rows}_{key}"
                report[cell] = round(made.tokens / made.seconds, 1)
                if rows == 1:
                    report[f"{cell}_all"] = round(made.rate, 1)
                report[f"{cell}_equal"] = f"{equal} of {len(asked)}"
                report[f"{cell}_step_ms"] = round(1000 * made.seconds / made.steps, 3)
                report[f"{cell}_tokens"] = round(made.tokens / made.steps / rows, 3)
                print(cell, report[cell], equal, len(asked), made.steps, report[f"{cell}_tokens"], flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for key in keys:
        for rows in args.rows:
            ours = report[f"radar_b{rows}_{key}"]
            report[f"radar_over_plain_b{rows}_{key}"] = round(ours / report[f"plain_b{rows}_{key}"], 3)
            report[f"radar_over_threshold_b{rows}_{key}"] = round(ours / report[f"threshold_b{rows}_{key}"], 3)
        report[f"radar_over_eagle3_b8_{key}"] = round(report[f"radar_b8_{key}"] / report[f"eagle3_60_b8_{key}"], 3)
        report[f"b1_cost_{key}"] = round(report[f"radar_alone_{key}"] / report[f"radar_b1_{key}_all"], 3)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
