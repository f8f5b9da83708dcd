"""The rules of the literature beside RADAR on the laboratory pairs, by replay of the tasks' rounds at measured costs.

`python -m bench.lab.contenders --work .lab/end_to_end --out bench/results/contenders.json` after the stages `record`,
`costs` and `policies` of `bench.end_to_end`. Every rule is fitted to the training prompts, its threshold is chosen on
the development prompts, and the tasks judge. All trees have 60 nodes and up to 16 calls; RADAR as published has 8.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.policies import EPOCHS, PUBLISHED, RADAR, Choice, setting
from bench.lab.record_pair import TASKS, TREE, rounds_of, stem
from bench.lab.speed import geometric_mean
from radar.policy.base import StopPolicy
from radar.tools.machine import describe_machine
from radar.train.backward import fit_backward
from radar.train.contenders import EAGLE3, tuned_contenders
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset, read_rounds
from radar.train.evaluate import evaluate, render

NAMES = {PUBLISHED: "RADAR as published", RADAR: "RADAR"}


def develop(rounds: Path, temperature: float) -> RoundDataset:
    """All development prompts; a kind counts by its rounds."""
    files = sorted(rounds.glob(stem("develop-*", temperature, TREE.total_tokens) + "_*.jsonl"))
    return read_rounds([file for file in files if b'"scores"' in file.read_bytes()])


def compare(work: Path, temperature: float, epochs: int) -> dict[str, Any]:
    """One pair at one temperature: what tuning chose, and by task all policies and oracles, as in `Evaluation`."""
    rounds, folder = work / "rounds", work / f"T{temperature:g}"
    costs, choice = CostTable.load(work / "costs.json", device=None), Choice.load(folder / "choice.json")
    train = rounds_of(rounds, "train", temperature)
    tuned = tuned_contenders(train, develop(rounds, temperature), costs, epochs=epochs)
    policies: dict[str, StopPolicy] = {name: one.policy for name, one in tuned.items()}
    policies |= {shown: setting(choice, folder, method, TASKS[0])[1] for method, shown in NAMES.items()}
    attainable, tasks = fit_backward(train, costs), {}
    for task in TASKS:
        data = rounds_of(rounds, task, temperature)
        rows = evaluate(policies, data, costs, reference=EAGLE3, attainable=attainable)
        print(f"\n{work.name} {task} T={temperature:g}: {len(data)} rounds\n{render(rows)}", flush=True)
        tasks[task] = [row.to_dict() for row in rows]
    return {"values": {name: one.value for name, one in tuned.items() if one.value is not None}, "tasks": tasks}


def overall(pairs: dict[str, dict[str, Any]], temperature: str) -> dict[str, dict[str, float]]:
    """By policy, the geometric mean of its ratios to EAGLE-3 over all cells; calls and acceptance in the mean."""
    cells = [rows for pair in pairs.values() for rows in pair.get(temperature, {"tasks": {}})["tasks"].values()]
    found: dict[str, dict[str, float]] = {}
    for name in [row["name"] for row in cells[0]] if cells else []:
        rows = [next(row for row in cell if row["name"] == name) for cell in cells]
        found[name] = {"cells": len(rows), "over_eagle3": geometric_mean([row["ratio"] for row in rows])}
        found[name] |= {
            key: sum(row[key] for row in rows) / len(rows) for key in ("draft_calls", "mean_acceptance_length")
        }
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="of `bench.end_to_end`: a folder for each pair")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the literature's heads; RADAR's by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "contenders.json")
    args = parser.parse_args(argv)
    folders = sorted(folder for folder in args.work.iterdir() if (folder / "costs.json").is_file())
    if not folders:
        raise ValueError(f"no pair under {args.work}: run the stages record, costs and policies of bench.end_to_end")
    report: dict[str, Any] = {
        "command": command_line("bench.lab.contenders", argv),
        "machine": describe_machine(torch.device("cpu")),
        "overall": {},
        "pairs": {folder.name: {} for folder in folders},
    }
    for temperature in args.temperatures:
        for folder in folders:
            report["pairs"][folder.name][f"{temperature:g}"] = compare(folder, temperature, args.epochs)
        report["overall"][f"{temperature:g}"] = overall(report["pairs"], f"{temperature:g}")
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
