"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = [
    "add_device_options", "add_model_options", "add_progress_option", "add_prompt_options", "follows", "positive",
]  # fmt: skip


def follows() -> bool:
    """Whether this process is one of `torchrun`'s that prints nothing, reads nothing and listens nowhere."""
    from radar.target.launched import launched_ranks

    return launched_ranks() > 1 and os.environ["RANK"] != "0"


def positive(text: str) -> int:
    """A number of things, at least one."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {text!r}")
    return value


def add_model_options(parser: argparse.ArgumentParser, *, policy: bool = True, fallback: bool = False) -> None:
    """The models, and how their decoder is made: what `radar.cli.decoders.make_decoder` reads."""
    group = parser.add_argument_group("models")
    group.add_argument("--target", metavar="PATH", help="target model: folder or hub name (default: the embedded pair)")
    group.add_argument("--draft", metavar="PATH", help="folder of an EAGLE-3 head for that target")
    if policy:
        group.add_argument(
            "--policy",
            metavar="PATH|N",
            help='folder or file of a stop policy, a fixed number of draft calls, or "auto" (as without it)',
        )
    add_device_options(group)
    group.add_argument(
        "--engine",
        choices=("graph", "eager"),
        help="one CUDA graph a round, or steps from Python (default: graph on a GPU)",
    )
    if fallback:
        group.add_argument(
            "--no-fallback", action="store_true", help="draft in every round, even where it does not pay"
        )
    group.add_argument(
        "--total-tokens", type=int, metavar="N", help="nodes verified per round (default 60, 32 on a CPU)"
    )
    group.add_argument("--max-calls", type=int, metavar="N", help="most draft calls per round (default 16)")
    group.add_argument("--max-length", type=int, metavar="N", help="prompt and output together (default 2048)")


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Where and in what a model runs."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the checkpoint's")


def add_prompt_options(
    parser: argparse.ArgumentParser, *, max_new_tokens: int, limit: int | None = None, required: bool = False
) -> None:
    """A file of prompts, how many of them, and how long each text gets; the values are the defaults."""
    parser.add_argument(
        "--prompts",
        type=Path,
        required=required,
        metavar="FILE",
        help='JSON lines with "prompt", or MT-bench\'s "turns"',
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=limit,
        metavar="N",
        help=f"take the first N prompts (default {limit or 'all'})",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"limit of each output (default {max_new_tokens})",
    )


def add_progress_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")
