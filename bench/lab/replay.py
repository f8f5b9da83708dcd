"""All stop policies by replay at draft call / rest = 0.05: `python -m bench.lab.replay --trees lab_trees.pt --rounds
EMBEDDED.jsonl ... --out bench/results/replay_policies.json`.

Policies are fitted on training prompts, thresholds chosen on other training prompts, and everything is judged on
prompts that neither saw: the task sets of the laboratory model, or a fifth of the embedded pair's training prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.command import command_line
from radar.config import TreeConfig
from radar.policy.base import StopPolicy
from radar.policy.baselines import Capped
from radar.policy.lstm import RadarPolicy
from radar.tools.machine import describe_machine
from radar.train.backward import fit_backward
from radar.train.contenders import EAGLE3, tuned_contenders
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset, RoundsHeader, read_rounds
from radar.train.evaluate import evaluate, render
from radar.train.policy import train_policy
from radar.train.tune import tune

# milliseconds of an H200: draft call / rest = 0.05, one decision on the device 6 us
COSTS = CostTable.constant(call=0.26, decision=0.006, rest=5.2, device="assumed", pair="laboratory")
ALPHAS = (0.01, 0.03, 0.06, 0.09)  # the published grid's range
PER_TEXT = 24  # places of every text that the laboratory recorded
LEARNED, PUBLISHED, THRESHOLD = "LSTM, throughput objective", "RADAR as published", "beam-mass threshold"
TRAINING = {"epochs": 20, "batch_size": 256, "learning_rate": 1e-3, "held_out": 0.1, "progress": False}


def convert(part: tuple[Tensor, Tensor, Tensor], temperature: float) -> RoundDataset:
    """A set of the laboratory's trees: scores [N, 16, k], accepted lengths for stops after 0 to 16 calls, entropy."""
    scores, accept, _ = part
    rounds, calls, width = scores.shape
    index = torch.arange(rounds)
    return RoundDataset(
        scores.float(),
        accept[:, 1:].long(),
        index // PER_TEXT,
        index % PER_TEXT,
        RoundsHeader(TreeConfig(tree_top_k=width, max_calls=calls), temperature, {"target": "laboratory"}),
    )


def fit(
    train: RoundDataset, develop: RoundDataset, *, consecutive: bool
) -> tuple[dict[str, StopPolicy], dict[str, Any]]:
    """All policies, and what tuning chose."""
    contenders = tuned_contenders(train, develop, COSTS)
    if not consecutive:
        del contenders["GammaTune"]  # it needs the round before, and these are single places of a text
    policies: dict[str, StopPolicy] = {name: one.policy for name, one in contenders.items()}
    with tempfile.TemporaryDirectory() as folder:
        published = {}
        for alpha in ALPHAS:
            place = Path(folder) / f"paper{alpha}"
            paper = train_policy(train, place, costs=COSTS, alpha=alpha, max_calls=8, **TRAINING)
            published[alpha] = (Capped(RadarPolicy(place, sample=True), 8), paper["collapsed"])
        alpha = tune(lambda value: published[value][0], ALPHAS, develop, COSTS).value
        policies[PUBLISHED] = published[alpha][0]
        options = {"objective": "ratio", "estimator": "exact", "entropy": 0.1, **TRAINING}
        ratio = train_policy(train, Path(folder) / "ratio", costs=COSTS, **options)
        policies[LEARNED] = RadarPolicy(Path(folder) / "ratio")
    chosen = {name: one.value for name, one in contenders.items() if one.value is not None}
    chosen[PUBLISHED] = alpha
    every = {str(value): how for value, (_, how) in published.items()}
    return policies, {"values": chosen, "collapsed": {PUBLISHED: every, LEARNED: ratio["collapsed"]}}


def judge(name: str, policies: dict[str, StopPolicy], attainable: Any, rounds: RoundDataset) -> dict[str, Any]:
    rows = evaluate(policies, rounds, COSTS, reference=EAGLE3, attainable=attainable)
    print(f"\n{name}: {len(rounds)} rounds of {len(rounds.prompt.unique())} prompts\n{render(rows)}", flush=True)
    over = {row.name: row for row in evaluate(policies, rounds, COSTS, reference=THRESHOLD)}[LEARNED]
    return {
        "rounds": len(rounds),
        "prompts": len(rounds.prompt.unique()),
        "policies": [row.to_dict() for row in rows],
        "learned_over_threshold": {"ratio": over.ratio, "interval": over.interval},
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=Path, help="trees of the laboratory model")
    parser.add_argument("--rounds", type=Path, nargs="*", default=[], help="rounds of the embedded pair")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"command": command_line("bench.lab.replay", argv)}
    report |= {"machine": describe_machine(torch.device("cpu")), "sets": {}}
    report["costs_ms"] = {"call": 0.26, "decision": 0.006, "rest": 5.2}
    begun = time.monotonic()
    if args.trees is not None:
        trees = torch.load(args.trees)
        for temperature in (0.0, 1.0):
            train, develop = convert(trees["train", temperature], temperature).split_by_prompt(0.2)
            policies, about = fit(train, develop, consecutive=False)
            attainable = fit_backward(train, COSTS)
            report[f"laboratory T={temperature:g}"] = about
            for name, at in trees:
                if at == temperature and name != "train":
                    label = f"laboratory {name} T={temperature:g}"
                    report["sets"][label] = judge(label, policies, attainable, convert(trees[name, at], at))
    if args.rounds:
        rest, test = read_rounds(args.rounds).split_by_prompt(0.2)
        train, develop = rest.split_by_prompt(0.2, seed=1)
        policies, about = fit(train, develop, consecutive=True)
        report["embedded pair"] = about
        report["sets"]["embedded pair"] = judge("embedded pair", policies, fit_backward(train, COSTS), test)
    report["seconds"] = round(time.monotonic() - begun)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1:])
