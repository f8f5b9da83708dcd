"""`radar generate`: one text, streamed."""

from __future__ import annotations

import argparse
import sys

from radar.cli.arguments import add_model_options, follows
from radar.cli.prompt import figures, given_text
from radar.cli.request import add_request_options, asked

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Continues a prompt and streams the text; a line of figures follows on stderr. Under torchrun --nproc-per-node "
        "N -m radar generate ... the model is split over N GPUs."
    )
    add_request_options(parser)
    parser.add_argument("--no-echo", action="store_true", help="print only the new text, not the prompt before it")
    add_model_options(parser, fallback=True)


def run(args: argparse.Namespace) -> int:
    text = "" if follows() else given_text(args.prompt)
    from radar.cli.decoders import make_decoder

    decoder = make_decoder(args, fallback=not args.no_fallback, tp_plan="auto")
    if decoder.is_follower:
        decoder.follow()
        return 0
    prompt, options = asked(args, text, decoder)
    if prompt == text and not args.no_echo:
        print(text, end="", flush=True)
    stream = decoder.stream(prompt, **options)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    print(figures(stream.output, options), file=sys.stderr)
    return 0
