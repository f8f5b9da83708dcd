"""`radar train-policy`: a stop policy from recorded rounds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from radar.cli.costs import add_cost_options, costs_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains RADAR's LSTM policy on what `radar record` wrote; no model is needed. Interrupted runs resume. Prints "
        "one JSON line with the results on held-out prompts."
    )
    parser.add_argument(
        "--rounds", type=Path, nargs="+", required=True, metavar="FILE", help="recorded rounds (.jsonl)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the policy goes")
    add_cost_options(parser)
    parser.add_argument(
        "--objective",
        choices=("paper", "ratio"),
        default="paper",
        help="the paper's reward, or tokens per time (default paper)",
    )
    parser.add_argument(
        "--estimator",
        choices=("reinforce", "exact"),
        default="reinforce",
        help="sampled actions as in the paper, or their exact expectation (default reinforce)",
    )
    parser.add_argument("--alpha", type=float, default=0.02, help="the paper's cost of a further call (default 0.02)")
    parser.add_argument(
        "--beta", type=float, help="the paper's weight of accepted/time (default 10 * (call + decision))"
    )
    parser.add_argument("--gamma", type=float, default=0.99, help="discount per call (default 0.99)")
    parser.add_argument(
        "--entropy", type=float, default=0.0, metavar="X", help="bonus that keeps a policy from collapsing"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="default 1e-4")
    parser.add_argument("--weight-decay", type=float, default=1e-4, metavar="X", help="default 1e-4")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="P", help="default 0.1")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--max-calls", type=int, metavar="N", help="allow fewer calls than were recorded")
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="prompts that choose the checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--restart", action="store_true", help="start over instead of resuming what is in --out")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")


def run(args: argparse.Namespace) -> int:
    from radar.train.policy import train_policy

    result = train_policy(
        args.rounds,
        args.out,
        costs=costs_of(args),
        progress=not args.no_progress,
        resume=not args.restart,
        objective=args.objective,
        estimator=args.estimator,
        alpha=args.alpha,
        beta=args.beta,
        gamma=args.gamma,
        entropy=args.entropy,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        epochs=args.epochs,
        batch_size=args.batch_size,
        max_calls=args.max_calls,
        held_out=args.held_out,
        seed=args.seed,
    )
    print(json.dumps(dict(result)))
    return 0
