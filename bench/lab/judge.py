"""Fit, tune and judge stop policies by replay of the tasks' rounds: one loop, and what is asked is a configuration.

`python -m bench.lab.judge rules --work .lab/end_to_end --out bench/results/replay/contenders.json` after the stages
`record`, `costs` and `policies` of `bench.end_to_end`. What is fitted sees the training prompts, what is tuned the
development prompts, and the tasks judge. Costs are the pair's own; all trees have 60 nodes and up to 16 calls.

rules     the rules of the literature beside RADAR, and RADAR as published (at most 8 calls)
alphas    the published reward by its alpha beside the ratio objective, with at most 16 and at most 8 calls
transfer  policies and thresholds of every pair on every other
prices    draft calls that cost 1, 2, 4 and 8 times as much: a policy as trained, one trained for it, a threshold
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.intervals import geometric_mean
from bench.lab.configurations import CONFIGURATIONS, Asked, load_pair
from bench.lab.fit import EPOCHS
from bench.lab.policies import METHODS, Choice, setting
from bench.lab.sets import TASKS, rounds_of
from radar import FixedDepth
from radar.replay.evaluate import evaluate, render
from radar.replay.replay import replay
from radar.tools.costs import CostTable
from radar.tools.machine import describe_machine
from radar.train.contenders import EAGLE3

__all__ = ["judge", "overall", "predict"]

MEANS = ("draft_calls", "mean_acceptance_length")


def judge(asked: Asked) -> dict[str, list[dict[str, Any]]]:
    """By task, all policies over EAGLE-3 and the oracles, as in `radar.replay.evaluate.Evaluation`."""
    policies = {EAGLE3: FixedDepth(8)} | asked.policies
    found = {}
    for task, rounds in asked.pair.tasks.items():
        rows = evaluate(policies, rounds, asked.pair.costs, reference=EAGLE3)
        title = f"{asked.pair.folder.name} {task} T={asked.pair.temperature:g}{asked.label}"
        print(f"\n{title}: {len(rounds)} rounds\n{render(rows)}", flush=True)
        found[task] = [row._asdict() for row in rows]
    return found


def overall(cells: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """By policy, the geometric mean of its ratios to EAGLE-3 over all cells; calls and acceptance in the mean."""
    found: dict[str, dict[str, float]] = {}
    for name in [row["name"] for row in cells[0]]:
        rows = [next(row for row in cell if row["name"] == name) for cell in cells]
        found[name] = {"cells": len(rows), "over_eagle3": geometric_mean([row["ratio"] for row in rows])}
        found[name] |= {key: sum(row[key] for row in rows) / len(rows) for key in MEANS}
    return found


def predict(rounds: Path, costs: CostTable, folder: Path, choice: Choice, *, temperature: float) -> dict[str, Any]:
    """Replay of the tasks' own rounds: by task, tokens per second that each method would reach with its tree."""

    def speed(method: str, task: str) -> float:
        tree, policy = setting(choice, folder, method, task)
        return replay(policy, rounds_of(rounds, task, temperature, tree.total_tokens), costs).tokens_per_time

    return {task: {"tokens_per_second": {method: speed(method, task) for method in METHODS}} for task in TASKS}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("configuration", choices=CONFIGURATIONS)
    parser.add_argument("--work", type=Path, required=True, help="of `bench.end_to_end`: a folder for each pair")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every network that is trained here")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    folders = sorted(folder for folder in args.work.iterdir() if (folder / "costs.json").is_file())
    if not folders:
        raise ValueError(f"no pair under {args.work}: run the stages record, costs and policies of bench.end_to_end")
    report: dict[str, Any] = {
        "command": command_line("bench.lab.judge", argv),
        "machine": describe_machine(torch.device("cpu")),
        "overall": {},
        "pairs": {folder.name: {} for folder in folders},
    }
    for temperature in args.temperatures:
        pairs = [load_pair(folder, temperature) for folder in folders]
        for pair in pairs:
            work = pair.chosen / args.configuration
            for asked in CONFIGURATIONS[args.configuration](pair, pairs, work, args.epochs):
                report["pairs"][pair.folder.name][f"{temperature:g}{asked.label}"] = {
                    "values": asked.values, "tasks": judge(asked)
                }  # fmt: skip
        labels = dict.fromkeys(label for found in report["pairs"].values() for label in found)
        for label in labels:
            of_label = [found[label]["tasks"] for found in report["pairs"].values() if label in found]
            report["overall"][label] = overall([cell for tasks in of_label for cell in tasks.values()])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
