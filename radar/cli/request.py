"""What the commands that continue one prompt are asked for: the prompt, a limit, how tokens are chosen."""

from __future__ import annotations

import argparse
from typing import Any

from radar.cli.prompt import check_template
from radar.cli.sampling import add_sampling_options, generate_options

__all__ = ["MAX_NEW_TOKENS", "add_request_options", "asked"]

MAX_NEW_TOKENS = 256


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """What `asked` reads."""
    parser.add_argument(
        "prompt", nargs="?", help="text to continue; - or none: what is piped in, without its last line end"
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="what the model should know before the prompt; implies --chat")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"limit of the output (default {MAX_NEW_TOKENS}, or what fits into --max-length)",
    )
    add_sampling_options(parser)


def asked(args: argparse.Namespace, text: str, decoder: Any) -> tuple[Any, dict[str, Any]]:
    """The prompt, text or messages, and the options for `decoder.stream`.

    Args:
        args: the options of `add_request_options`.
        text: that `given_text` found, before a decoder was made for it.
        decoder: which will write.
    """
    prompt: Any = text
    if args.chat or args.system is not None:
        check_template(decoder.tokenizer, "or leave out --chat and --system to continue plain text")
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        prompt = [*system, {"role": "user", "content": text}]
    limit = args.max_new_tokens
    if limit is None:
        limit = max(1, min(MAX_NEW_TOKENS, decoder.max_length - len(decoder.encode(prompt))))
    return prompt, {"max_new_tokens": limit} | generate_options(args, decoder.model)
