"""What a policy loses on another pair, or where a draft call costs more than it was trained for, by replay.

`python -m bench.lab.transfer --work .lab/end_to_end --out bench/results/transfer.json` after the stages `record`,
`costs` and `policies` of `bench.end_to_end` at temperature 0. Tasks count by their geometric mean; all trees have 60
nodes. The objective has no weight to turn; what traces its curve of draft calls against acceptance is their price.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.policies import EAGLE3, EPOCHS, RADAR, THRESHOLD, TRAINING, Choice
from bench.lab.record_pair import TASKS, rounds_of
from bench.lab.speed import geometric_mean
from radar import FixedDepth, RadarPolicy, Threshold
from radar.policy.base import StopPolicy
from radar.tools.machine import describe_machine
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.policy import train_policy
from radar.train.replay import replay

DEARER = 4  # times what a draft call costs
PRICES = (1, 2, DEARER, 8)

Tasks = Mapping[str, RoundDataset]


def speed(policy: StopPolicy, tasks: Tasks, costs: CostTable) -> float:
    """Tokens per second, the geometric mean of the tasks."""
    return geometric_mean([replay(policy, data, costs).tokens_per_time for data in tasks.values()])


def dearer(costs: CostTable, times: float) -> CostTable:
    return replace(costs, draft_call_seconds=tuple(times * one for one in costs.draft_call_seconds))


def point(policy: StopPolicy, tasks: Tasks, costs: CostTable) -> dict[str, float]:
    """One point of the curve: changes against EAGLE-3 with 8 calls, of the tasks' means, and speed at these costs."""
    ours, theirs = ([replay(one, data, costs) for data in tasks.values()] for one in (policy, FixedDepth(8)))
    calls, lengths = (
        sum(getattr(one, name) for one in ours) / sum(getattr(one, name) for one in theirs) - 1
        for name in ("draft_calls", "mean_acceptance_length")
    )
    base = geometric_mean([one.tokens_per_time for one in theirs])
    gain = geometric_mean([one.tokens_per_time for one in ours]) / base
    return {"draft_calls_change": calls, "acceptance_change": lengths, "over_eagle3": gain}


def matrix(policies: Mapping[str, StopPolicy], tasks: Mapping[str, Tasks], costs: Mapping[str, CostTable]) -> Any:
    """By the pair that is decoded and the pair that the policy is of: speed over EAGLE-3 with 8 calls."""
    out: dict[str, dict[str, float]] = {}
    for pair, data in tasks.items():
        base = speed(FixedDepth(8), data, costs[pair])
        out[pair] = {source: speed(policy, data, costs[pair]) / base for source, policy in policies.items()}
    return out


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="a folder for each pair: rounds, costs.json and T0")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    pairs = sorted(path.parent.parent.name for path in args.work.glob("*/T0/choice.json"))
    choices = {pair: Choice.load(args.work / pair / "T0" / "choice.json") for pair in pairs}
    costs = {pair: CostTable.load(args.work / pair / "costs.json", device=None) for pair in pairs}
    tasks = {pair: {task: rounds_of(args.work / pair / "rounds", task, 0.0) for task in TASKS} for pair in pairs}
    networks = {pair: RadarPolicy(args.work / pair / "T0" / choices[pair].radar) for pair in pairs}
    thresholds = {pair: Threshold(choices[pair].threshold) for pair in pairs}
    at_more: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[int, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs:
            train = rounds_of(args.work / pair / "rounds", "train", 0.0)
            made = {1: networks[pair]}
            for price in PRICES[1:]:
                out = Path(folder) / f"{pair}-{price}"
                train_policy(train, out, costs=dearer(costs[pair], price), epochs=EPOCHS, **TRAINING)
                made[price] = RadarPolicy(out)
            curves[pair] = {
                price: point(policy, tasks[pair], dearer(costs[pair], price)) for price, policy in made.items()
            }
            prices = dearer(costs[pair], DEARER)
            base = speed(FixedDepth(8), tasks[pair], prices)
            found = {"as trained": networks[pair], "trained for it": made[DEARER], THRESHOLD: thresholds[pair]}
            at_more[pair] = {name: speed(policy, tasks[pair], prices) / base for name, policy in found.items()}
    report = {
        "command": command_line("bench.lab.transfer", argv),
        "machine": describe_machine(torch.device("cpu")),
        "note": f"Speeds over {EAGLE3} with 8 calls, by replay. By the pair that is decoded, then the pair that the "
        f"policy was fitted to; '{DEARER} times': draft calls cost so much more than in the table of the policy; "
        "'curve': policies trained for draft calls of so many times their price.",
        RADAR: matrix(networks, tasks, costs),
        THRESHOLD: matrix(thresholds, tasks, costs),
        f"{DEARER} times": at_more,
        "curve": curves,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
