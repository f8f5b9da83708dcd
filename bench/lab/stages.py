"""The stages of one pair's comparison, each of which keeps what it finished: see `bench.end_to_end`."""

from __future__ import annotations

import argparse
import json
import operator
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.lab.judge import predict
from bench.lab.measure import Methods, measure, measure_generate
from bench.lab.pairs import Wide, load_pair, measure_costs
from bench.lab.policies import Choice, choose_policies
from bench.lab.processes import side_by_side
from bench.lab.record import record_share
from bench.lab.sets import NODES, TASKS, TREE, fitting, prompt_sets
from bench.lab.widen import widen
from bench.shapes import Geometry
from radar import AutoregressiveDecoder, TreeConfig
from radar.target.load import load_tokenizer
from radar.tools.costs import CostTable
from radar.tools.machine import describe_machine, device_name
from radar.tools.prompts import load_prompts

__all__ = ["STAGES", "Comparison", "OutOfTime"]

STAGES = ("check", "record", "costs", "policies", "replay", "measure", "generate")


class OutOfTime(Exception):
    """The budget is spent; what is done is on disk."""


class Comparison:
    """One pair's stages.

    Args:
        name: of the pair.
        folder: of the small pair: `target` and `draft`.
        geometry: to widen to.
        args: of the command line.
        deadline: on the monotonic clock.
    """

    def __init__(self, name: str, folder: Path, geometry: Geometry, args: argparse.Namespace, deadline: float) -> None:
        self.name, self.folder, self.geometry, self.args, self.deadline = name, folder, geometry, args, deadline
        self.work: Path = args.work / name
        self.rounds = self.work / "rounds"
        self.work.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def wide(self) -> Wide:
        begun = time.monotonic()
        wide = Wide(self.folder, self.geometry, device=self.device, max_length=self.args.max_length)
        print(f"{self.name}: widened to {self.geometry.name} in {time.monotonic() - begun:.1f} s", flush=True)
        return wide

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.folder / "target"))

    @cached_property
    def table(self) -> CostTable:
        return CostTable.load(self.work / "costs.json", device=None)

    def run(self, stages: Sequence[str]) -> None:
        """The chosen stages in their order. Raises OutOfTime."""
        for stage in STAGES:
            if stage in stages:
                self.check_time()
                begun = time.monotonic()
                getattr(self, stage)()
                print(f"{self.name}: {stage} done in {time.monotonic() - begun:.1f} s", flush=True)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def check(self) -> None:
        file = self.work / "check.json"
        if file.is_file():
            return
        texts, prompts = [], [prompt for task in TASKS for prompt in self.prompts(task)[:1]]
        small = load_pair(self.folder, self.device, torch.float32)
        wide = widen(small.model, small.draft, self.geometry, device=self.device, dtype=torch.float32)
        for model in (small.model, wide.model):
            decoder = AutoregressiveDecoder(model, max_length=self.args.max_length)
            texts.append([decoder.generate(prompt, max_new_tokens=64).token_ids for prompt in prompts])
        found = {"float32 texts equal": sum(map(operator.eq, *texts)), "prompts": len(prompts)}
        print(f"{self.name}: {found}", flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")

    def record(self) -> None:
        args, left = self.args, self.deadline - time.monotonic()
        sets = prompt_sets(args.data, args.prompts, train=args.train, develop=args.develop, limit=args.limit)
        options = (args.temperatures, args.new_tokens, args.max_length, left)
        calls = [(self.folder, self.rounds, sets, *options, (i, args.workers)) for i in range(args.workers)]
        finished = side_by_side(record_share, calls, args.workers)
        if not all(finished):
            raise OutOfTime

    def costs(self) -> None:
        file = self.work / "costs.json"
        if file.is_file():
            return
        trees = [TREE if nodes == TREE.total_tokens else TreeConfig(total_tokens=nodes, max_calls=8) for nodes in NODES]
        most = self.args.max_length
        contexts = (most // 8, most // 2)  # beyond them a context costs what the nearest does
        measure_costs(self.wide, trees, contexts=contexts, name=self.name, repeats=self.args.cost_repeats).save(file)

    def policies(self) -> None:
        for temperature in self.args.temperatures:
            self.check_time()
            out, options = self.work / f"T{temperature:g}", {"epochs": self.args.epochs, "workers": self.args.workers}
            choice = choose_policies(self.rounds, self.table, out, temperature=temperature, **options)
            print(f"{self.name} T={temperature:g}: {choice}", flush=True)

    def replay(self) -> None:
        for temperature in self.args.temperatures:
            self.check_time()
            folder = self.work / f"T{temperature:g}"
            choice = Choice.load(folder / "choice.json")
            predicted = predict(self.rounds, self.table, folder, choice, temperature=temperature)
            (folder / "replay.json").write_text(json.dumps(predicted, indent=1) + "\n")

    def measure(self) -> None:
        CostTable.load(self.work / "costs.json", device=device_name(self.device))  # runs and costs are of one device
        (self.work / "machine.json").write_text(json.dumps(describe_machine(self.device)) + "\n")
        measure(
            Methods(self.wide, self.work, new_tokens=self.args.new_tokens), self.name,
            {task: self.prompts(task) for task in TASKS}, temperatures=self.args.temperatures,
            check_time=self.check_time,
        )  # fmt: skip

    def generate(self) -> None:
        file = self.work / "generate.json"
        if file.is_file():
            return
        texts = [prompt for task in TASKS for prompt in self.prompts(task)[: self.args.generate_prompts]]
        found = measure_generate(self.wide, texts, new_tokens=self.args.new_tokens, check_time=self.check_time)
        file.write_text(json.dumps(found, indent=1) + "\n")

    def prompts(self, task: str) -> list[list[int]]:
        """Token ids of a task's prompts that leave room for the text."""
        args = self.args
        lines = load_prompts(args.prompts / f"q_{task}.jsonl", limit=args.limit)
        return fitting(lines, self.tokenizer, new_tokens=args.new_tokens, max_length=args.max_length)
