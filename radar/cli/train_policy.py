"""`radar train-policy`: a stop policy from recorded rounds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from radar.cli.arguments import add_progress_option
from radar.cli.costs import add_cost_options, costs_of
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]

OPTIONS = (
    *("objective", "estimator", "alpha", "beta", "gamma", "entropy", "learning_rate", "weight_decay", "dropout"),
    *("epochs", "batch_size", "max_calls", "nodes", "held_out", "seed"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains RADAR's LSTM policy on what `radar record` wrote; no model is needed. Interrupted runs resume. Prints "
        "what the policy reaches on held-out prompts, and ends with status 1 if it collapsed."
    )
    parser.add_argument(
        "--rounds", type=Path, nargs="+", required=True, metavar="FOLDER", help="recordings to train on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the policy goes")
    add_cost_options(parser)
    parser.add_argument(
        "--objective",
        choices=("ratio", "paper"),
        default="ratio",
        help="tokens per time, or the paper's reward with the paper's settings (default ratio)",
    )
    parser.add_argument(
        "--estimator",
        choices=("exact", "reinforce"),
        help="exact expectation of the gradient, or sampled actions (default exact; the paper's reward: reinforce)",
    )
    of_paper = "(the paper's reward alone; default {})"
    parser.add_argument("--alpha", type=float, help=f"cost of a further call {of_paper.format(0.02)}")
    parser.add_argument(
        "--beta", type=float, help=f"weight of accepted/time {of_paper.format('10 * (call + decision)')}"
    )
    parser.add_argument("--gamma", type=float, help=f"discount per call {of_paper.format(0.99)}")
    for name, kind, ours, paper in (
        ("entropy", float, 0.1, 0),
        ("learning-rate", float, 1e-3, 1e-4),
        ("epochs", int, 80, 100),
        ("batch-size", int, 256, 64),
    ):
        bonus = "bonus that keeps a policy from collapsing; " if name == "entropy" else ""
        parser.add_argument(
            f"--{name}", type=kind, metavar="X", help=f"{bonus}default {ours:g}; the paper's reward: {paper:g}"
        )
    parser.add_argument("--weight-decay", type=float, default=1e-4, metavar="X", help="default 1e-4")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="P", help="default 0.1")
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of verified nodes that the policy chooses among, of those recorded; one: it always verifies so "
        "many (default: all that were recorded and that no larger one undercuts by the costs; with the paper's "
        "objective or sampled actions the trees')",
    )
    parser.add_argument("--max-calls", type=int, metavar="N", help="allow fewer calls than were recorded")
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="prompts that choose the checkpoint (default 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--restart", action="store_true", help="start over instead of resuming what is in --out")
    parser.add_argument(
        "--force", action="store_true", help="take too few rounds, prompts that measure, and a policy that collapsed"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    costs = costs_of(args)

    import warnings

    from radar.replay.recording import read_rounds
    from radar.train.policy import too_few, train_policy

    rounds = read_rounds(args.rounds)
    for doubt in filter(None, (too_few(rounds), _measuring(rounds))):
        if not args.force:
            raise UsageError(f"{doubt}. With --force it is done all the same")
        print(f"radar train-policy: {doubt}", file=sys.stderr)
    options = {name: getattr(args, name) for name in OPTIONS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is said here
        result = train_policy(
            rounds, args.out, costs=costs, progress=not args.no_progress, resume=not args.restart, **options
        )
    print(json.dumps(result) if args.json else _report(result, costs.device))
    if how := result["collapsed"]:
        print(
            f"radar train-policy: THE POLICY COLLAPSED: it {how}, whatever the scores. What may help: more rounds, a "
            "larger --entropy; or calls cost so little or so much by this table that a fixed number does as well",
            file=sys.stderr,
        )
        return 0 if args.force else 1
    return 0


def _measuring(rounds: Any) -> str | None:
    """Why these rounds would spoil what `radar bench` measures, in words."""
    from radar.cli.decoders import default_prompts
    from radar.tools.prompts import load_prompts
    from radar.tools.twins import fingerprint, near_twins

    measuring = {number: fingerprint(line.text) for number, line in enumerate(load_prompts(default_prompts()))}
    found = near_twins(rounds.prompts, measuring)
    if not found:
        return None
    return (
        f"{len(found)} of {len(rounds.prompts)} prompts are, or nearly are, those that `radar bench` measures with by "
        f"default (the first is prompt {min(found)}): record others"
    )


def _report(result: Any, device: str) -> str:
    from radar.tools.table import table

    base, fixed = result["baseline"], f"{result['best_fixed_change']:+.1%} against the best fixed number of calls"
    names = {"tokens_per_time": "tokens/s by the cost table", "draft_calls": "draft calls [per round]"}
    names |= {"mean_acceptance_length": "tokens [per round]"}
    rows = [
        [shown, f"{result[name]:.4g}", f"{base[name]:.4g}", f"{result[name] / base[name] - 1:+.1%}"]
        for name, shown in names.items()
    ]
    most = sum(result["stop_histogram"])
    nodes = [[n, count, f"{count / most:.1%}"] for n, count in result["node_histogram"].items()]
    stops = [[call, count, f"{count / most:.1%}"] for call, count in enumerate(result["stop_histogram"], 1)]
    return "\n".join(
        (
            f"{result['policy']}: epoch {result['best_epoch']} of {result['epochs']}, trained on "
            f"{result['train_rounds']} rounds for {device}; on {result['held_out_rounds']} held-out rounds, which "
            "chose the epoch:\n",
            table(["", "policy", "EAGLE-3, 8 calls", "change"], rows),
            f"\ntokens/s: {fixed}\n",
            table(["stops after call", "rounds", "share"], stops),
            *(["", table(["nodes verified", "rounds", "share"], nodes)] if len(nodes) > 1 else []),
        )
    )
