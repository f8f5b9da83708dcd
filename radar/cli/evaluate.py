"""`radar evaluate`: stop policies judged on recorded rounds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from radar.cli.costs import add_cost_options, costs_of
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replays recorded rounds: tokens per second of EAGLE-3, of rules of the literature (tuned on other prompts) "
        "and of your policies, with oracles and 95 % intervals by prompt. No model is needed."
    )
    parser.add_argument(
        "--rounds", type=Path, nargs="+", required=True, metavar="FILE", help="rounds to judge on (.jsonl)"
    )
    parser.add_argument(
        "--tune-on", type=Path, nargs="+", metavar="FILE", help="rounds to fit and tune on (default: half of --rounds)"
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME=PATH", help="a trained policy; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of splits and intervals")
    add_cost_options(parser)


def run(args: argparse.Namespace) -> int:
    from radar.policy.lstm import RadarPolicy
    from radar.train.backward import fit_backward
    from radar.train.contenders import EAGLE3, tuned_contenders
    from radar.train.dataset import read_rounds
    from radar.train.evaluate import evaluate, render, shared_prompts

    costs, rounds = costs_of(args), read_rounds(args.rounds)
    if args.tune_on:
        rest = read_rounds(args.tune_on)
        if shared := shared_prompts(rounds, rest):
            raise UsageError(
                f"the rounds of {len(shared)} prompts are in --rounds and in --tune-on, which has to be of other "
                "prompts: give each file to one of the two, or leave out --tune-on to tune on half of --rounds"
            )
        _need(rounds, "--rounds", 2, "intervals are by prompt")
        _need(rest, "--tune-on", 2, "one to train on and one to tune on")
    else:
        _need(rounds, "--rounds", 4, "two to judge on, one to train on and one to tune on, unless --tune-on is given")
        rest, rounds = rounds.split_by_prompt(0.5, args.seed)
    train, develop = rest.split_by_prompt(0.2, args.seed + 1)
    contenders = tuned_contenders(train, develop, costs)
    policies: dict[str, Any] = {name: one.policy for name, one in contenders.items()}
    for given in args.policy:
        name, mark, path = given.partition("=")
        if not mark or not name or name in policies:
            raise UsageError(f"--policy takes NAME=PATH with a name of its own, got {given!r}")
        policies[name] = RadarPolicy(path)
    results = evaluate(policies, rounds, costs, reference=EAGLE3, attainable=fit_backward(train, costs), seed=args.seed)
    if not args.json:
        print(render(results))
        return 0
    tuned = {name: one.value for name, one in contenders.items()}
    about = {"rounds": len(rounds), "set_aside": len(rounds.set_aside), "costs": costs.to_dict(), "tuned": tuned}
    print(json.dumps(about | {"policies": [one.to_dict() for one in results]}, indent=2))
    return 0


def _need(rounds: Any, option: str, prompts: int, why: str) -> None:
    """Before anything is tuned: rounds of enough prompts, with something to decide."""
    if (found := len(rounds.prompt.unique())) < prompts:
        raise UsageError(
            f"{option} needs rounds of {prompts} prompts or more, found {found}: {why}. Record more prompts; a text "
            "that is too short has no rounds"
        )
    if (calls := rounds.header.tree.max_calls) < 2:
        raise UsageError(
            f"{option}: rounds with max_calls={calls} leave nothing to decide: record with more --max-calls"
        )
