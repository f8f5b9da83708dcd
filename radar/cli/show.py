"""`radar show`: a generation as a page to look into, or as a picture."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from radar.cli.arguments import add_model_options
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decodes a prompt, with drafts in every round and driven from Python, and draws what happened. A file .html "
        "gets a page for itself, which loads nothing from elsewhere: the text by rounds, and the draft tree of each. A "
        "file .svg gets a picture of the text by rounds."
    )
    parser.add_argument("prompt", help="text to continue")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument(
        "--output",
        type=_drawing,
        default=Path("radar.html"),
        metavar="FILE",
        help="page (.html) or picture (.svg) to write (default radar.html)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="limit of the output (default 256)"
    )
    add_model_options(parser)


def _drawing(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".html", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .html (a page) or .svg (a picture), got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import make_decoder
    from radar.tools.prompts import PromptLine, encode_prompt
    from radar.tools.show.page import page
    from radar.tools.show.picture import picture
    from radar.tools.show.trace import trace

    if args.engine == "graph":
        raise UsageError("a graph runs a whole round and cannot be watched: leave --engine out")
    decoder = make_decoder(args, engine="eager", fallback=False)
    prompt = encode_prompt(PromptLine(args.prompt, chat=args.chat), decoder.tokenizer)
    seen = trace(decoder, prompt, max_new_tokens=args.max_new_tokens)
    if args.output.suffix == ".svg":
        drawn = picture(seen, decoder.tokenizer, command=shlex.join(["radar", *sys.argv[1:]]))
    else:
        drawn = page(seen, decoder.tokenizer, about=_about(args, decoder))
    args.output.write_text(drawn, encoding="utf-8", newline="\n")
    m = seen.metrics
    print(f"{args.output}: {m.num_tokens} tokens in {m.num_spec_steps} rounds, {len(drawn.encode()) / 1e3:.0f} kB")
    return 0


def _about(args: argparse.Namespace, decoder: Any) -> dict[str, str]:
    from radar.tools.machine import device_name

    tree = decoder.tree
    return {
        "target": args.target or "the embedded pair",
        "draft": args.draft or "the embedded pair",
        "policy": repr(decoder.policy),
        "tree": f"{tree.total_tokens} nodes verified, beam of {tree.tree_top_k}, {tree.max_calls} calls at most",
        "runner": f"eager on {device_name(decoder.model.device)}, {str(decoder.model.dtype).removeprefix('torch.')}",
    }
