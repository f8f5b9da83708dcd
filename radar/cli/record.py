"""`radar record`: rounds at full depth, to train a policy on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decodes the prompts with every round drafted to --max-calls, and writes for each round the scores that a "
        "policy reads and the accepted length for every stop. Resumes where an interrupted run ended."
    )
    add_prompt_options(parser, max_new_tokens=192, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="data set to write or go on with (.jsonl)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="of the text; above 0 the distribution of the accepted length is recorded (default 0: greedy)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled text (default 0)")
    parser.add_argument(
        "--every-token",
        action="store_true",
        help="a round at every token, several times as many: `radar evaluate` then replays just what decoding would do",
    )
    add_model_options(parser, policy=False)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import encoded_prompts, make_decoder
    from radar.train.record import record

    # eager: the recorder makes graphs of its own
    decoder = make_decoder(args, engine="eager", fallback=False)
    result = record(
        decoder,
        encoded_prompts(args, decoder.tokenizer),
        args.out,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        metadata={"target": args.target or "embedded", "draft": args.draft or "embedded"},
        every_token=args.every_token,
        progress=not args.no_progress,
    )
    print(json.dumps(result))
    return 0
