"""`radar show`: a generation as a page to look into, or as a picture."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from radar.cli.arguments import add_model_options
from radar.cli.prompt import given_text
from radar.cli.request import add_request_options, asked
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decodes a prompt, with drafts in every round and driven from Python, and draws what happened. A file .html "
        "gets a page for itself, which loads nothing from elsewhere: the text by rounds, and the draft tree of each. A "
        "file .svg gets a picture of the text by rounds."
    )
    add_request_options(parser)
    parser.add_argument(
        "--output",
        type=_drawing,
        default=Path("radar.html"),
        metavar="FILE",
        help="page (.html) or picture (.svg) to write (default radar.html)",
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
    text = given_text(args.prompt)
    if args.engine == "graph":
        raise UsageError("a graph runs a whole round and cannot be watched: leave --engine out")
    from radar.cli.decoders import make_decoder
    from radar.tools.show.page import page
    from radar.tools.show.picture import picture
    from radar.tools.show.trace import trace

    decoder = make_decoder(args, engine="eager", fallback=False)
    prompt, options = asked(args, text, decoder)
    seen = trace(decoder, prompt, **options)
    if args.output.suffix == ".svg":
        drawn = picture(seen, decoder.tokenizer, command=shlex.join(["radar", *sys.argv[1:]]))
    else:
        drawn = page(seen, decoder.tokenizer, about=_about(args, decoder, options))
    args.output.write_text(drawn, encoding="utf-8", newline="\n")
    m = seen.metrics
    print(f"{args.output}: {m.num_tokens} tokens in {m.num_spec_steps} rounds, {len(drawn.encode()) / 1e3:.0f} kB")
    return 0


def _about(args: argparse.Namespace, decoder: Any, options: dict[str, Any]) -> dict[str, str]:
    from radar.tools.machine import device_name

    tree = decoder.tree
    chosen = {name: value for name, value in options.items() if name not in ("do_sample", "max_new_tokens")}
    how = ["sampled" if options["do_sample"] else "the likeliest", *(f"{name} {chosen[name]}" for name in chosen)]
    return {
        "target": args.target or "the embedded pair",
        "draft": args.draft or "the embedded pair",
        "policy": repr(decoder.policy),
        "tree": f"{tree.total_tokens} nodes verified, beam of {tree.tree_top_k}, {tree.max_calls} calls at most",
        "tokens": ", ".join(how),
        "runner": f"eager on {device_name(decoder.model.device)}, {str(decoder.model.dtype).removeprefix('torch.')}",
    }
