"""`radar fit`: from a model to a faster model, in one command."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from radar.cli.arguments import add_device_options, add_progress_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lets the model write text to the prompts, trains a draft head on it, records rounds, measures what they cost "
        "here, trains a stop policy, judges it on prompts that nothing has seen, keeps the fastest and writes a "
        "report. RadarDecoder.from_pretrained(MODEL, FOLDER), or --target MODEL --draft FOLDER, then decodes the "
        "model's own text faster. It says beforehand what it takes. The same command goes on where an interrupted one "
        "ended. Prompts that will measure the result do not belong into FILE, nor do their near-twins."
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the model")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines with "prompt", or MT-bench\'s "turns": what the model will be asked; 40 at the least, some '
        "thousand are good",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="what to make: a new folder, or one to go on with"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        metavar="M",
        help="for all of it, most of them for the head (default 15, which is meant for a GPU and a small model)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_device_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from radar.fit.fit import fit

    try:
        result = fit(
            args.model,
            args.prompts,
            args.out,
            minutes=args.minutes,
            device=args.device,
            dtype=getattr(torch, args.dtype) if args.dtype else None,
            progress=not args.no_progress,
        )
    except KeyboardInterrupt:
        print(f"what is done lies in {args.out}: the same command goes on", file=sys.stderr)
        raise
    if args.json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['out']}: {result['kept']} is kept, {result['speed_up']:.2f} times as fast as without drafts, "
        f"{result['tokens_per_round']:.2f} tokens a round with 8 calls; see {result['report']}"
    )
    return 0
