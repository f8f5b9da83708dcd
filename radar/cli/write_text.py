"""`radar write-text`: what the target writes after prompts, to train a draft head on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options, positive

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lets the target answer prompts, and writes prompts and answers to a folder that `radar train-draft --text` "
        "takes: a head learns most from text of its own target. The same command goes on where an interrupted run "
        "ended, with prompts that the file has got since. Under `accelerate launch` processes share the prompts."
    )
    add_prompt_options(parser, max_new_tokens=512, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="texts to write or go on with: a folder of .jsonl"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of the texts (default 0: greedy)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled texts (default 0)")
    parser.add_argument(
        "--max-batch-size", type=positive, default=8, metavar="N", help="texts at once (default 8, most 32)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_model_options(parser, fallback=True)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import make_decoder, prompt_lines
    from radar.target.digest import weights_digest
    from radar.tools.writing import write_texts

    decoder = make_decoder(args, fallback=not args.no_fallback, max_batch_size=args.max_batch_size)
    result = write_texts(
        decoder,
        prompt_lines(args, decoder.tokenizer),
        args.out,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        metadata={"target": weights_digest(decoder.model)},
        progress=not args.no_progress,
    )
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['out']}: {result['texts']} texts, {result['new_texts']} of them now")
    return 0
