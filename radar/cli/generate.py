"""`radar generate`: one text, streamed."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from radar.cli.arguments import add_model_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Continues a prompt and streams the text; a line of figures follows on stderr."
    parser.add_argument("prompt", help="text to continue")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--no-echo", action="store_true", help="print only the new text, not the prompt before it")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="limit of the output (default 256)"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import make_decoder

    decoder = make_decoder(args)
    prompt: Any = args.prompt
    if args.chat:
        from radar.tools.prompts import PromptLine, encode_prompt

        prompt = encode_prompt(PromptLine(args.prompt, chat=True), decoder.tokenizer)
    elif not args.no_echo:
        print(args.prompt, end="", flush=True)
    stream = decoder.stream(prompt, max_new_tokens=args.max_new_tokens)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    m = stream.output.metrics
    plain = f", {m.num_fallback_tokens} tokens by plain steps" if m.num_fallback_tokens else ""
    print(
        f"[{m.num_tokens} tokens, {m.tokens_per_second:.1f} tokens/s, {m.mean_acceptance_length:.2f} tokens per target "
        f"pass, {m.draft_calls_per_round:.2f} draft calls per round{plain}]",
        file=sys.stderr,
    )
    return 0
