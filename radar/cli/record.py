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
        "policy reads and the accepted length for every stop. The same command goes on where an interrupted run ended, "
        "with prompts that the file has got since, and records again what is damaged."
    )
    add_prompt_options(parser, max_new_tokens=192, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="recording to write or go on with: a folder of shards"
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
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_model_options(parser, policy=False)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import encoded_prompts, make_decoder
    from radar.replay.record import record
    from radar.tools.prompts import load_prompts
    from radar.tools.table import table

    texts = [line.text for line in load_prompts(args.prompts, limit=args.limit)]
    # eager: the recorder makes graphs of its own
    decoder = make_decoder(args, engine="eager", fallback=False)
    result = record(
        decoder,
        encoded_prompts(args, decoder.tokenizer),
        args.out,
        texts=texts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        metadata={"target": args.target or "embedded", "draft": args.draft or "embedded"},
        every_token=args.every_token,
        progress=not args.no_progress,
    )
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['out']}\n")
    print(table(["recorded", "now", "in all"], [[n, result[f"new_{n}"], result[n]] for n in ("prompts", "rounds")]))
    lengths = enumerate(result["mean_accept_length_by_calls"], start=1)
    print()
    print(table(["draft calls", "draft tokens accepted [per round]"], [[n, f"{length:.2f}"] for n, length in lengths]))
    return 0
