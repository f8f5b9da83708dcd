"""`radar evaluate`: stop policies judged on recorded rounds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from radar.cli.costs import add_cost_options, costs_of
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replays recorded rounds: tokens per second of EAGLE-3, of rules of the literature (tuned on other prompts) "
        "and of your policies, with oracles and 95 % intervals by prompt. No model is needed. Prompts that a policy "
        "was trained on, or near-twins of them, must not judge it."
    )
    parser.add_argument(
        "--rounds", type=Path, nargs="+", required=True, metavar="FOLDER", help="recordings to judge on"
    )
    parser.add_argument(
        "--tune-on", type=Path, nargs="+", metavar="FOLDER", help="recordings to tune on (default: half of --rounds)"
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME=PATH", help="a trained policy; may be repeated"
    )
    parser.add_argument(
        "--leave-out-shared", action="store_true", help="judge without the prompts that tuning or a policy has seen"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of splits and intervals (default 0)")
    add_cost_options(parser)


def run(args: argparse.Namespace) -> int:
    costs = costs_of(args)

    from radar.tools.twins import load_prompts_seen
    from radar.train.contenders import EAGLE3, tuned_contenders
    from radar.train.evaluate import evaluate, render
    from radar.train.recording import read_rounds

    rounds, paths = read_rounds(args.rounds), _policies(args.policy)
    used: dict[str, Any] = {}
    if args.tune_on:
        rest = read_rounds(args.tune_on)
        used["--tune-on"] = rest.prompts
        _need(rest, "--tune-on", 2, "one to train on and one to tune on")
    for name, path in paths.items():
        used[f"the training of {name}"] = seen = load_prompts_seen(path)
        if seen is None:
            print(f"radar evaluate: {name} does not say what it was trained on: see to it yourself", file=sys.stderr)
    rounds = _unseen(rounds, used, leave_out=args.leave_out_shared)
    if args.tune_on:
        _need(rounds, "--rounds", 2, "intervals are by prompt")
    else:
        _need(rounds, "--rounds", 4, "two to judge on, one to train on and one to tune on, unless --tune-on is given")
        rest, rounds = rounds.split_by_prompt(0.5, args.seed)
    train, develop = rest.split_by_prompt(0.2, args.seed + 1)
    contenders = tuned_contenders(train, develop, costs)
    policies: dict[str, Any] = {name: one.policy for name, one in contenders.items()}
    if twice := policies.keys() & paths.keys():
        raise UsageError(f"--policy takes NAME=PATH with a name of its own, got {min(twice)!r}")
    from radar.policy.lstm import RadarPolicy

    policies |= {name: RadarPolicy(path) for name, path in paths.items()}
    results = evaluate(policies, rounds, costs, reference=EAGLE3, seed=args.seed)
    edges = [f"{name} at {one.value:g}" for name, one in contenders.items() if one.at_edge]
    if args.json:
        tuned = {name: {"value": one.value, "at_edge": one.at_edge} for name, one in contenders.items()}
        about = {"rounds": len(rounds), "prompts": len(rounds.prompt.unique()), "costs": costs.to_dict()}
        figures = {"tuned": tuned, "policies": [one._asdict() for one in results]}
        print(json.dumps(about | figures, indent=2))
        return 0
    print(f"{len(rounds)} rounds of {len(rounds.prompt.unique())} prompts; costs: {costs.pair} on {costs.device}\n")
    print(render(results))
    print(f"\nreference: {EAGLE3}; gap: from the best fixed depth to what knowing the probabilities (hindsight) allows")
    if edges:
        print(f"best at the end of what was tried, so that more may lie beyond: {', '.join(edges)}")
    return 0


def _policies(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not mark or not name or name in found:
            raise UsageError(f"--policy takes NAME=PATH with a name of its own, got {one!r}")
        found[name] = path
    return found


def _unseen(rounds: Any, used: dict[str, Any], *, leave_out: bool) -> Any:
    """The rounds, if none of their prompts has been used; without those, if they may be left out."""
    from radar.tools.twins import near_twins

    shared: dict[int, None] = {}
    found = []
    for what, prompts in used.items():
        if twins := near_twins(rounds.prompts, prompts or {}):
            shared |= dict.fromkeys(twins)
            found.append(f"{len(twins)} in {what}")
    if not shared:
        return rounds
    some = ", ".join(map(str, sorted(shared)[:10])) + (", ..." if len(shared) > 10 else "")
    text = f"of {len(rounds.prompts)} prompts that judge, some or near-twins of them are used up: {'; '.join(found)}"
    if not leave_out:
        raise UsageError(
            f"{text} (prompts {some} of --rounds). Record other prompts, or judge by the rest with --leave-out-shared"
        )
    print(f"radar evaluate: {text}; left out: {some}", file=sys.stderr)
    import torch

    return rounds.select(~torch.isin(rounds.prompt, torch.tensor(list(shared))))


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
