"""Options of the training commands, and the calls they make."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radar.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from radar.train.costs import CostTable
    from radar.train.dataset import RoundDataset

__all__ = [
    "add_evaluate",
    "add_train_draft",
    "add_train_policy",
    "evaluate_command",
    "train_draft_command",
    "train_policy_command",
]


def add_train_draft(commands: Any) -> argparse.ArgumentParser:
    """`radar train-draft`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train-draft",
        help="train an EAGLE-3 draft head for a target, on a text file",
        description="Trains a head by EAGLE-3's training-time test on text, best on text that the target wrote itself. "
        "Interrupted runs resume. Prints one JSON line with the results.",
    )
    parser.add_argument("--target", required=True, metavar="PATH", help="target model: folder or hub name")
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FILE", help='plain text, or JSON lines with "text"'
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the head goes")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default 2000)")
    length.add_argument("--seconds", type=float, metavar="S", help="time budget instead of steps")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows per step (default 8)")
    parser.add_argument("--length", type=int, default=512, metavar="N", help="tokens per window (default 512)")
    parser.add_argument("--lr", type=float, default=5e-4, metavar="X", help="peak learning rate (default 5e-4)")
    parser.add_argument(
        "--ttt-length", type=int, default=7, metavar="N", help="draft calls played per position (default 7)"
    )
    parser.add_argument("--intermediate-size", type=int, metavar="N", help="of the head's MLP (default: the target's)")
    parser.add_argument(
        "--draft-vocab-size", type=int, metavar="N", help="most frequent tokens kept (default 32000 at most)"
    )
    parser.add_argument("--tap-layers", metavar="I,J,K", help="hidden_states indices to read (default 2, N/2, N-3)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--restart", action="store_true", help="begin anew instead of going on with what is in --out")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")
    return parser


def train_draft_command(args: argparse.Namespace) -> dict[str, Any]:
    """Run `radar train-draft`; returns the results."""
    from radar.decoder import default_device
    from radar.draft.config import DraftConfig
    from radar.target.load import load_model, load_tokenizer
    from radar.train.draft import TrainingOptions, train_draft
    from radar.train.tokens import TokenMixture, encode_file

    if not args.text.is_file():
        raise NotFoundError(f"no such text file: {args.text}")
    taps = None
    if args.tap_layers is not None:
        try:
            taps = tuple(int(part) for part in args.tap_layers.split(","))
        except ValueError:
            raise UsageError(f"--tap-layers takes numbers such as 2,16,29, got {args.tap_layers!r}") from None
    for name in ("steps", "intermediate_size", "draft_vocab_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, got {value}; leave it out for the default")
    model = load_model(args.target, device=default_device(args.device), dtype=None)
    tokenizer = load_tokenizer(args.target)
    c = model.config
    heads, hidden = int(c.num_attention_heads), int(c.hidden_size)
    config = DraftConfig(
        hidden_size=hidden,
        intermediate_size=args.intermediate_size or int(c.intermediate_size),
        num_attention_heads=heads,
        num_key_value_heads=int(c.num_key_value_heads),
        head_dim=int(getattr(c, "head_dim", None) or hidden // heads),
        vocab_size=int(c.vocab_size),
        draft_vocab_size=args.draft_vocab_size or min(32000, int(c.vocab_size)),
        target_hidden_size=hidden,
        num_aux_hidden_states=3 if taps is None else len(taps),
        rms_norm_eps=float(c.rms_norm_eps),
    )
    options = TrainingOptions(
        steps=2000 if args.steps is None and args.seconds is None else args.steps,
        seconds=args.seconds,
        batch_size=args.batch_size,
        length=args.length,
        lr=args.lr,
        ttt_length=args.ttt_length,
        seed=args.seed,
        progress=not args.no_progress,
    )
    tokens = encode_file(args.text, tokenizer.encode, eos_token_id=tokenizer.eos_token_id)
    print(f"{len(tokens)} tokens of {args.text}", file=sys.stderr)
    return train_draft(
        model,
        TokenMixture(tokens),
        args.out,
        config=config,
        options=options,
        tap_layers=taps,
        resume=not args.restart,
    )


def add_train_policy(commands: Any) -> argparse.ArgumentParser:
    """`radar train-policy`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train-policy",
        help="train a stop policy on recorded rounds",
        description="Trains RADAR's LSTM policy on what `radar record` wrote; no model is needed. Interrupted "
        "runs resume. Prints one JSON line with the results on held-out prompts.",
    )
    parser.add_argument(
        "--rounds", type=Path, nargs="+", required=True, metavar="FILE", help="recorded rounds (.jsonl)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the policy goes")
    _cost_options(parser)
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
    return parser


def train_policy_command(args: argparse.Namespace) -> dict[str, Any]:
    """Run `radar train-policy`; returns the results."""
    from radar.train.policy import train_policy

    costs = _costs(args)
    return dict(
        train_policy(
            args.rounds,
            args.out,
            costs=costs,
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
    )


def add_evaluate(commands: Any) -> argparse.ArgumentParser:
    """`radar evaluate`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="compare stop policies on recorded rounds",
        description="Replays recorded rounds: tokens per second of EAGLE-3, of rules of the literature (tuned on other "
        "prompts) and of your policies, with oracles and 95 % intervals by prompt. No model is needed.",
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
    _cost_options(parser)
    return parser


def evaluate_command(args: argparse.Namespace) -> str:
    """Run `radar evaluate`; returns what to print."""
    from radar.policy.lstm import RadarPolicy
    from radar.train.backward import fit_backward
    from radar.train.contenders import EAGLE3, tuned_contenders
    from radar.train.dataset import read_rounds
    from radar.train.evaluate import evaluate, render, shared_prompts

    costs, rounds = _costs(args), read_rounds(args.rounds)
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
        return render(results)
    tuned = {name: one.value for name, one in contenders.items()}
    about = {"rounds": len(rounds), "set_aside": len(rounds.set_aside), "costs": costs.to_dict(), "tuned": tuned}
    return json.dumps(about | {"policies": [one.to_dict() for one in results]}, indent=2)


def _need(rounds: RoundDataset, option: str, prompts: int, why: str) -> None:
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


def _cost_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cost of a round (default: the paper's)")
    group.add_argument("--costs", type=Path, metavar="FILE", help="cost table of this device (.json)")
    group.add_argument("--any-device", action="store_true", help="take the table of another device")
    group.add_argument("--call-time", type=float, metavar="T", help="instead of a table: time of one draft call")
    group.add_argument("--decision-time", type=float, metavar="T", help="time of one stop decision, same unit")
    group.add_argument("--rest-time", type=float, metavar="T", help="time of the rest of a round, same unit")


def _costs(args: argparse.Namespace) -> CostTable:
    from radar.decoder import default_device
    from radar.tools.compare import device_name
    from radar.train.costs import CostTable

    times = (args.call_time, args.decision_time, args.rest_time)
    if any(value is not None for value in times):
        if None in times or args.costs is not None:
            raise UsageError("give --costs, or --call-time, --decision-time and --rest-time together in one unit")
        return CostTable.constant(call=times[0], decision=times[1], rest=times[2])
    if args.costs is None:
        return CostTable.paper()
    device = None if args.any_device else device_name(default_device())
    return CostTable.load(args.costs, device=device)
