"""`radar chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import Any

from radar.cli.arguments import add_model_options, positive
from radar.cli.prompt import MARK, check_template, figures
from radar.cli.sampling import add_sampling_options, generate_options
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]

MAX_NEW_TOKENS = 1024
HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"A conversation with the model: every line is a message, and {HELP}. The caches are kept from message to "
        "message, so that only what is new is read. Lines that are piped in are messages too."
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model should know before the first message")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help=f"limit of each answer, as far as --max-length has room (default {MAX_NEW_TOKENS})",
    )
    add_sampling_options(parser)
    add_model_options(parser, fallback=True)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import make_decoder

    decoder = make_decoder(args, fallback=not args.no_fallback)
    check_template(decoder.tokenizer, "or continue plain text by `radar generate`")
    chat, typed = _Conversation(decoder, args), sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = _next_line(typed)
            if line is None or not chat.take(line):
                return 0
        except UsageError as error:  # a conversation that is full, half a character: the chat goes on
            if not typed:
                raise
            print(f"radar chat: {error}", file=sys.stderr)
        except KeyboardInterrupt:  # at the prompt, or once more while an answer is being stopped
            if not typed:
                raise
            print(f"\n{HELP}", file=sys.stderr)


def _next_line(typed: bool) -> str | None:
    """What the user says next; None at the end."""
    try:
        return input("> " if typed and sys.stdout.isatty() else "").removeprefix(MARK)
    except EOFError:
        if typed:
            print()
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text ({error.reason}): convert it") from None


class _Conversation:
    """The messages so far."""

    def __init__(self, decoder: Any, args: argparse.Namespace) -> None:
        self.decoder, self.args = decoder, args
        self.begin = [] if args.system is None else [{"role": "system", "content": args.system}]
        self.messages = list(self.begin)

    def take(self, line: str) -> bool:
        """Answer a message, or do what a command says; False to end."""
        command = line.strip()
        if command == "/exit":
            return False
        if command == "/reset":
            self.messages = list(self.begin)
            print("[forgotten]", file=sys.stderr)
        elif command.startswith("/") and " " not in command:
            print(f"no command {command}: {HELP}", file=sys.stderr)
        elif command:
            self._answer(line)
        return True

    def _answer(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        options, room = generate_options(self.args, self.decoder.model), self.decoder.max_length
        room -= len(self.decoder.encode(messages))
        if room < 1:
            raise UsageError(
                f"the conversation fills the cache of {self.decoder.max_length} tokens: /reset begins a new one, and "
                "--max-length makes room for longer ones"
            )
        stream = self.decoder.stream(messages, max_new_tokens=min(self.args.max_new_tokens, room), **options)
        _print_until_stopped(stream)
        output = stream.output
        if output.text or output.finish_reason != "cancelled":  # what was stopped before its first word was not said
            self.messages = [*messages, {"role": "assistant", "content": output.text}]
        print(figures(output, options), file=sys.stderr)


def _print_until_stopped(stream: Any) -> None:
    """Print pieces as they come. Ctrl-C stops between two of them, so that the caches hold what has been said."""
    from radar.tools.interrupts import interruptible

    with contextlib.suppress(KeyboardInterrupt), stream, interruptible(signal.SIGINT) as interrupts, interrupts.held():
        for piece in stream:
            print(piece, end="", flush=True)
            if interrupts.count:
                break
    print(flush=True)
