"""The published reward over its alpha, beside the throughput objective that has none, by replay on other prompts.

`python -m bench.lab.alpha_ablation --rounds .lab/rounds2/*.jsonl --work .lab/alpha` writes
bench/results/alpha_ablation.json. A network that was trained stays in `--work`, so that the same command goes on where
it was stopped. Actions are not sampled here: what is compared is the reward.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.replay import COSTS
from radar import FixedDepth, RadarPolicy
from radar.tools.machine import describe_machine
from radar.train.contenders import EAGLE3
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset, read_rounds
from radar.train.evaluate import evaluate
from radar.train.policy import train_policy

ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)  # published: 0.01 to 0.09
THROUGHPUT = "throughput"
SHARED = {"batch_size": 256, "learning_rate": 1e-3, "held_out": 0.1, "progress": False}


def ablate(rounds: RoundDataset, costs: CostTable, work: Path, *, epochs: int) -> list[dict[str, Any]]:
    """Train on four fifths of the prompts, judge on the rest: a row for each alpha, then the throughput objective."""
    train, test = rounds.split_by_prompt(0.2)
    wanted: dict[str, dict[str, Any]] = {f"{alpha:g}": {"alpha": alpha} for alpha in ALPHAS}
    wanted[THROUGHPUT] = {"objective": "ratio", "estimator": "exact", "entropy": 0.1}
    policies: dict[str, Any] = {EAGLE3: FixedDepth(min(8, rounds.header.tree.max_calls))}
    collapsed = {}
    for name, options in wanted.items():
        begun = time.monotonic()
        result = train_policy(train, work / name, costs=costs, epochs=epochs, **SHARED, **options)
        collapsed[name] = result["collapsed"]
        policies[name] = RadarPolicy(work / name)
        print(f"{name}: {time.monotonic() - begun:.0f} s, {result['draft_calls']:.2f} calls", flush=True)
    rows = {row.name: row for row in evaluate(policies, test, costs, reference=EAGLE3)}
    return [
        {
            "objective": name,
            "alpha": wanted[name].get("alpha"),
            "over_eagle3": rows[name].ratio,
            "interval": rows[name].interval,
            "draft_calls": rows[name].draft_calls,
            "mean_acceptance_length": rows[name].mean_acceptance_length,
            "collapsed": collapsed[name],
        }
        for name in wanted
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, default=Path(".lab/alpha"))
    parser.add_argument("--max-calls", type=int, nargs="+", default=[16, 8], help="one curve for each bound")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--costs", type=Path, help="a measured table; None: draft call / rest = 0.05, assumed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "alpha_ablation.json")
    args = parser.parse_args(argv)
    if missing := [file for file in args.rounds if not file.is_file()]:
        print(f"no rounds at {missing[0]}: nothing to compare", file=sys.stderr)
        return 0
    costs = COSTS if args.costs is None else CostTable.load(args.costs, device=None)
    rounds = read_rounds(args.rounds)
    report: dict[str, Any] = {
        "command": command_line("bench.lab.alpha_ablation", argv),
        "machine": describe_machine(torch.device("cpu")),
        "rounds": len(rounds),
        "costs": costs.to_dict(),
        "curves": {},
    }
    for calls in args.max_calls:
        print(f"at most {calls} calls", flush=True)
        report["curves"][str(calls)] = ablate(
            rounds.truncate(calls), costs, args.work / f"calls-{calls}", epochs=args.epochs
        )
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
