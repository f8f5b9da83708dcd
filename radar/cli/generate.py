"""`radar generate`: one text, streamed."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from radar.cli.arguments import add_model_options
from radar.cli.prompt import check_template, figures, given_text
from radar.cli.sampling import add_sampling_options, generate_options

__all__ = ["add_arguments", "run"]

MAX_NEW_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Continues a prompt and streams the text; a line of figures follows on stderr."
    parser.add_argument(
        "prompt", nargs="?", help="text to continue; - or none: what is piped in, without its last line end"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="what the model should know before the prompt; implies --chat")
    parser.add_argument("--no-echo", action="store_true", help="print only the new text, not the prompt before it")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"limit of the output (default {MAX_NEW_TOKENS}, or what fits into --max-length)",
    )
    add_sampling_options(parser)
    add_model_options(parser, fallback=True)


def run(args: argparse.Namespace) -> int:
    text = given_text(args.prompt)
    from radar.cli.decoders import make_decoder

    decoder = make_decoder(args, fallback=not args.no_fallback)
    prompt: Any = text
    if args.chat or args.system is not None:
        check_template(decoder.tokenizer, "or leave out --chat and --system to continue plain text")
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        prompt = [*system, {"role": "user", "content": text}]
    elif not args.no_echo:
        print(text, end="", flush=True)
    options = generate_options(args, decoder.model)
    limit = args.max_new_tokens
    if limit is None:
        limit = max(1, min(MAX_NEW_TOKENS, decoder.max_length - len(decoder.encode(prompt))))
    stream = decoder.stream(prompt, max_new_tokens=limit, **options)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    print(figures(stream.output, options), file=sys.stderr)
    return 0
