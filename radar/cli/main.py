"""The `radar` command: one table of commands, and what becomes of their errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from radar.cli.version import VersionAction
from radar.errors import NumericalError, RanksError, UsageError

__all__ = ["COMMANDS", "Command", "main", "make_parser"]


class Command(NamedTuple):
    """A command `name` is the module `radar.cli.<name>`, with `add_arguments(parser)` and `run(args) -> exit status`.

    Such a module imports the standard library and `radar.errors` only, and the rest inside `run`: every call of `radar`
    imports all of them to build its parser.
    """

    name: str
    help: str

    @property
    def module(self) -> Any:
        return import_module(f"radar.cli.{self.name.replace('-', '_')}")


COMMANDS = (
    Command("generate", "continue a prompt and stream the text"),
    Command("show", "draw a text by its rounds, with their draft trees, as a page or a picture"),
    Command("chat", "talk with the model in the terminal"),
    Command("serve", "serve the model under OpenAI's API, with a page to chat"),
    Command("bench", "compare autoregressive decoding, EAGLE-3 and RADAR on the same prompts"),
    Command("verify", "check on your prompts that the text is the target's own"),
    Command("doctor", "find out how a draft head's file is to be read, by measuring"),
    Command("profile", "time the parts of a round on this device, for your own models"),
    Command("fit", "from a model to a faster model: head, policy and report in one command"),
    Command("record", "record draft rounds at full depth, to train a policy on"),
    Command("write-text", "let the target answer prompts, to train a draft head on its text"),
    Command("train-draft", "train an EAGLE-3 draft head for a target, on a text file"),
    Command("train-policy", "train a stop policy on recorded rounds"),
    Command("evaluate", "compare stop policies on recorded rounds"),
)

USAGE, INTERRUPTED, BUG = 2, 130, 1
REPORT = (
    "This is a bug of radar, not a mistake of yours. Please report it with the lines above, the command and what\n"
    "`radar --version` says."
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="radar",
        description="Lossless speculative decoding with EAGLE-3 draft trees and a learned stop policy.",
        epilog="Without --target every command uses the small pair that ships inside the package.",
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        added = commands.add_parser(command.name, help=command.help)
        command.module.add_arguments(added)
        added.add_argument("--debug", action="store_true", help="show where in the program an error arose")
        added.set_defaults(run=command.module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    A mistake of the user's, and what the system says of the user's files, is one line on stderr and status 2, with
    `--debug` after the traceback. Any other exception is a bug of this package: the traceback and status 1. Ctrl-C is
    130, and a reader of stdout that went away is 0.
    """
    args = argparse.Namespace(command="", debug=False)
    if sys.stdout is None:  # closed by the caller, who wants no output
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")  # a question mark instead of an error for what it cannot show
    try:
        try:
            args = make_parser().parse_args(argv)
            status: int = args.run(args)
            return status
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _leave_stdout()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, args)


def _failed(error: BaseException, args: argparse.Namespace) -> int:
    if _is_interrupt(error):
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    expected = isinstance(error, UsageError | NumericalError | RanksError | OSError)
    if args.debug or not expected:
        traceback.print_exception(error)
    if not expected:
        print(REPORT, file=sys.stderr)
        return BUG
    print(f"radar {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
    return USAGE


def _is_interrupt(error: BaseException | None) -> bool:
    """Ctrl-C, or what an import that it broke off made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _leave_stdout() -> None:
    """Nobody reads any more: what is left in the buffer goes nowhere, so that closing it raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
