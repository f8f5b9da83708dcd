"""A released model and the head that `radar fit` made for it, or a pair of `bench.lab`, at the shape of a large model:
every method decodes every prompt in turn, and again with several rows.

`python -m bench.released --model MODEL --draft HEAD --shape llama --prompts DIR --methods METHODS.json --out RUNS`, on
a GPU. METHODS.json holds what was tuned and trained on other prompts: by shape and temperature, the policies by name.
The same command goes on where it was stopped; `--seconds` stops it. With `--save DIR` the wide pair and the prompts are
left for peers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.lab.widen import widen
from bench.runs import AUTOREGRESSIVE, digest, key_of, read_runs, run_of
from bench.shapes import LLAMA_8B, QWEN3_8B, TINY, VICUNA_13B, Geometry
from bench.tables import TASKS
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, SamplingParams, Threshold, TreeConfig
from radar.draft.checkpoint import load_draft, save_draft
from radar.engine.budget import calls_of, nodes_of
from radar.policy.base import StopPolicy
from radar.policy.baselines import Capped
from radar.policy.by_mass import NodesByMass
from radar.target.load import load_model, load_tokenizer
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

VOCABULARY = 49152  # SmolLM2's, where the large model has fewer ids
SHAPES: dict[str, Geometry] = {
    "llama": LLAMA_8B,
    "vicuna": replace(VICUNA_13B, vocabulary=VOCABULARY),
    "qwen": QWEN3_8B,
    "laboratory": LLAMA_8B,  # a pair that `bench.lab` trained, such as the one that ships
}
_SMALL = {"layers": 30, "hidden_size": 704, "intermediate_size": 1600, "heads": 16, "kv_heads": 4}
SHAPES["small"] = replace(TINY, name="small", vocabulary=VOCABULARY, draft_vocabulary=32000, **_SMALL)  # for a CPU
KEPT = 4  # policies whose graphs a decoder keeps
BATCHED = ("eagle3", "threshold", "radar")  # of several rows, where nodes are shared and not chosen
TURNS = 3  # of several rows, which take seconds


def policy_of(told: Mapping[str, Any], folder: Path) -> StopPolicy:
    """A line of METHODS.json; networks lie in `folder`."""
    policy: StopPolicy
    if "network" in told:
        policy = RadarPolicy(folder / told["network"], sample=told.get("sample", False))
    else:
        policy = FixedDepth(told["calls"]) if "mass" not in told else Threshold(told["mass"])
    if "cap" in told:
        policy = Capped(policy, told["cap"])
    return NodesByMass(policy, told["nodes"], told["prices"]) if "nodes" in told else policy


class Methods:
    """The decoders of a wide pair."""

    def __init__(self, pair: Any, tokenizer: Any, methods: Mapping[str, Any], folder: Path) -> None:
        self._pair, self._methods, self._folder = pair, methods, folder
        self._options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": 1024}
        self._decoders: dict[Any, Any] = {}
        self._policies: dict[tuple[str, str], StopPolicy] = {}

    def decoder(self, method: str, temperature: str, rows: int) -> Any:
        """Ready to decode so many rows by this method."""
        options = self._options | ({"max_batch_size": rows} if rows > 1 else {})
        if method == AUTOREGRESSIVE:
            if (method, rows) not in self._decoders:
                self._decoders[method, rows] = AutoregressiveDecoder(self._pair.model, **options)
            return self._decoders[method, rows]
        told = self._methods[temperature][method]
        if (temperature, method) not in self._policies:
            self._policies[temperature, method] = policy_of(told, self._folder)
        policy, beams = self._policies[temperature, method], told.get("beams", 10)
        names = [name for name, one in self._methods[temperature].items() if one.get("beams", 10) == beams]
        key = beams, rows, names.index(method) // KEPT
        if key not in self._decoders:
            self._decoders[key] = RadarDecoder(
                self._pair.model, draft=self._pair.draft, policy=policy, tree=TreeConfig(tree_top_k=beams),
                fallback=False, **options,
            )  # fmt: skip
        self._decoders[key].policy = policy
        return self._decoders[key]


def tasks_of(folder: Path, tokenizer: Any, limit: int) -> dict[str, list[list[int]]]:
    """First turns by task, as ids."""
    lines = {task: load_prompts(folder / f"q_{task}.jsonl", limit=limit) for task in TASKS}
    return {task: [encode_prompt(line, tokenizer) for line in found] for task, found in lines.items()}


def alone(methods: Methods, names: Sequence[str], run: Mapping[str, Any], prompt: list[int], tokens: int) -> Any:
    """The prompt by every method in turn."""
    temperature = run["temperature"]
    for method in names:
        decoder = methods.decoder(method, f"{temperature:g}", 1)
        sampling = SamplingParams(temperature=temperature, seed=run["prompt"])  # one text, whatever the method
        output = decoder.generate(prompt, max_new_tokens=tokens, sampling=sampling)
        yield {**run, "method": method, "rows": 1, "drafted": output.metrics.num_draft_tokens} | run_of(output)


def together(methods: Methods, names: Sequence[str], prompts: list[list[int]], rows: int, tokens: int) -> Any:
    """All prompts by every method, so many at a time, greedily: wall-clock seconds, and what rounds are cut to."""
    bounds = {"most_calls": calls_of(rows), "most_nodes": nodes_of(TreeConfig().total_tokens, rows)}
    for method in names:
        decoder = methods.decoder(method, "0", rows)
        decoder.generate(prompts[:rows], max_new_tokens=8)
        begun = time.perf_counter()
        made = decoder.generate(prompts, max_new_tokens=tokens)
        seconds, texts = time.perf_counter() - begun, [digest(output.token_ids) for output in made]
        count = sum(len(output.token_ids) for output in made)
        yield {"method": method, "rows": rows, "tokens": count, "seconds": seconds, "texts": texts} | bounds


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("model", "draft", "prompts", "methods", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rows", type=int, nargs="*", default=[8])
    parser.add_argument("--limit", type=int, default=20, help="prompts of every task")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=540.0)
    args = parser.parse_args(argv)
    ends, device = time.monotonic() + args.seconds, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = load_model(str(args.model), device=device, dtype=dtype), load_tokenizer(str(args.model))
    draft = load_draft(args.draft, target_hidden_size=model.config.hidden_size, device=device, dtype=dtype)
    pair = widen(model, draft, SHAPES[args.shape], device=device, dtype=dtype)
    tasks = tasks_of(args.prompts, tokenizer, args.limit)
    if args.save:
        pair.model.save_pretrained(args.save / "target")
        save_draft(pair.draft, args.save / "draft")
        flat = [[task, ids] for task, found in tasks.items() for ids in found]
        (args.save / "prompts.json").write_text(json.dumps(flat), encoding="utf8")
    told = json.loads(args.methods.read_text(encoding="utf8"))
    chosen = told.get("methods", told)[args.shape]
    methods, warm = Methods(pair, tokenizer, chosen, args.methods.parent), set()
    done = {key_of(run) for run in read_runs(args.out) if "prompt" in run}
    with args.out.open("a", encoding="utf8") as sink:

        def write(run: dict[str, Any]) -> None:
            sink.write(json.dumps({"pair": args.shape} | run) + "\n")
            sink.flush()

        write({"about": describe_machine(device), "argv": argv})
        for temperature, index, task in product(args.temperatures, range(args.limit), TASKS):
            names = [AUTOREGRESSIVE, *chosen[f"{temperature:g}"]]
            run = {"pair": args.shape, "task": task, "temperature": temperature, "prompt": index}
            if index >= len(tasks[task]) or key_of(run | {"method": names[-1]}) in done:
                continue
            if time.monotonic() > ends:
                return 3
            if temperature not in warm:  # first calls compile and capture, in every process
                warm.add(temperature)
                for _ in alone(methods, names, run, tasks[task][index], args.new_tokens):
                    pass
            for one in alone(methods, names, run, tasks[task][index], args.new_tokens):
                write(one)
        prompts = [ids for found in tasks.values() for ids in found]
        names = [AUTOREGRESSIVE, *(name for name in BATCHED if name in chosen["0"])]
        turns = {(run["rows"], run["turn"], run["method"]) for run in read_runs(args.out) if "turn" in run}
        for rows, turn in product(args.rows, range(TURNS)):
            if (rows, turn, names[-1]) in turns:
                continue
            if time.monotonic() > ends:
                return 3
            for one in together(methods, names, prompts, rows, args.new_tokens):
                write({"temperature": 0.0, "turn": turn} | one)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
