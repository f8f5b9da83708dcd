"""`radar evaluate`: stop policies judged on recorded rounds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from radar.cli.arguments import positive
from radar.cli.costs import add_cost_options, batch_costs_of, costs_of
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replays recorded rounds: tokens per second of EAGLE-3, of rules of the literature (tuned on other prompts) "
        "and of your policies, with oracles and 95 % intervals by prompt. No model is needed. Prompts that a policy "
        "was trained on, or near-twins of them, must not judge it. With --batch it tells how deep rounds that "
        "several rows share should draft, and how many nodes they should verify together."
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
    parser.add_argument(
        "--batch",
        type=positive,
        nargs="+",
        metavar="N",
        help="rows that share a round: recorded rounds are put together by chance, at the times that `radar profile "
        "--batch` measured. Without intervals",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of splits and intervals (default 0)")
    add_cost_options(parser)


def run(args: argparse.Namespace) -> int:
    costs = costs_of(args) if args.batch is None else batch_costs_of(args)

    from radar.replay.evaluate import evaluate, render
    from radar.replay.recording import read_rounds
    from radar.tools.twins import load_prompts_seen
    from radar.train.contenders import EAGLE3, tuned_contenders

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
    if args.batch is not None:
        return _batches(args, paths, rest, rounds, costs)
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


def _batches(args: argparse.Namespace, paths: dict[str, str], develop: Any, rounds: Any, costs: Any) -> int:
    """What the rounds come to where several rows share them."""
    from radar.policy.lstm import RadarPolicy
    from radar.tools.batch_rounds import judge_batch
    from radar.tools.table import table

    policies = {name: RadarPolicy(path) for name, path in paths.items()}
    batches = sorted(set(args.batch))
    tables = {rows: costs.of(rows) for rows in batches}  # all of them, before anything is tuned
    found = [
        one
        for rows in batches
        for one in judge_batch(policies, develop, rounds, tables[rows], rows=rows, seed=args.seed)
    ]
    plain = {rows: rows / seconds for rows, seconds in costs.plain_seconds.items() if seconds}
    if args.json:
        about = {"rounds": len(rounds), "prompts": len(rounds.prompt.unique()), "plain_tokens_per_second": plain}
        flat = [{**one._asdict(), "result": one.result._asdict()} for one in found]
        print(json.dumps(about | {"batches": flat}, indent=2))
        return 0
    head = ["rows", "policy", "tuned", "nodes of all", "tokens/s", "over plain", "draft calls", "tokens [per row]"]
    cells = []
    for one in found:
        speed, tuned = one.result.tokens_per_time, "" if one.value is None else f"{one.value:g}"
        over = f"{speed / plain[one.rows]:.3f}" if one.rows in plain else ""
        figures = [f"{speed:.4g}", over, f"{one.result.draft_calls:.2f}", f"{one.result.mean_acceptance_length:.2f}"]
        cells.append([one.rows, one.name, tuned, one.nodes, *figures])
    print(f"{len(rounds)} rounds of {len(rounds.prompt.unique())} prompts, put together by chance\n")
    print(table(head, cells))
    print("\nnodes, and what is tuned, are the fastest of other prompts; differences of a percent are noise")
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
