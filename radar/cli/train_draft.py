"""`radar train-draft`: an EAGLE-3 head for a target, trained on a text file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from radar.cli.arguments import add_progress_option
from radar.errors import NotFoundError, UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a head by EAGLE-3's training-time test on text, best on text that the target wrote itself. The same "
        "command goes on with an interrupted run, and with more --steps or --seconds it extends a finished one."
    )
    parser.add_argument("--target", required=True, metavar="PATH", help="target model: folder or hub name")
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        metavar="PATH",
        help='plain text, JSON lines with "text", or a folder of those',
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
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from radar.decoder import default_device
    from radar.draft.config import DraftConfig
    from radar.target.load import load_model, load_tokenizer
    from radar.tools.documents import encode_file
    from radar.train.draft import TrainingOptions, train_draft
    from radar.train.tokens import TokenMixture

    if not args.text.exists():
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
    config = DraftConfig.of_target(
        model.config,
        draft_vocab_size=args.draft_vocab_size or min(32000, int(model.config.vocab_size)),
        intermediate_size=args.intermediate_size,
        taps=3 if taps is None else len(taps),
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
    result = train_draft(
        model,
        TokenMixture([tokens]),
        args.out,
        config=config,
        options=options,
        tap_layers=taps,
        resume=not args.restart,
    )
    if args.json:
        print(json.dumps(result))
        return 0
    from radar.tools.table import table

    print(f"{result['draft']}: {result['steps']} steps in {result['seconds']:g} s, {result['tokens']} tokens\n")
    calls = enumerate(zip(result["loss"], result["agreement"], strict=True), start=1)
    rows = [[call, f"{loss:.3f}", f"{share:.1%}"] for call, (loss, share) in calls]
    print(table(["draft call", "loss [nats]", "agrees with the target [of positions]"], rows))
    return 0
