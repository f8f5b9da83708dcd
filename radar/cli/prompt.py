"""The text that a user gives to a command, and what becomes of it."""

from __future__ import annotations

import sys
from typing import Any

from radar.errors import UsageError

__all__ = ["check_template", "figures", "given_text"]

MARK = "\ufeff"  # the byte-order mark that some editors and shells put in front


def given_text(argument: str | None) -> str:
    """The argument, or for `-`, or none with a pipe or file at hand, all of stdin but its last line end.

    Raises:
        UsageError: if there is neither, nothing in it, or stdin is not UTF-8.
    """
    if argument is None and sys.stdin.isatty():
        raise UsageError("no prompt: write it behind the command, in quotes, or let another program pipe it in")
    text = _stdin() if argument in (None, "-") else str(argument)
    text = text.removeprefix(MARK)
    if not text:
        raise UsageError("the prompt is empty: give it a character or more")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that the terminal could not read
        raise UsageError(f"the prompt is not UTF-8 text, at its character {error.start + 1}") from None
    return text


def _stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
    text = text.replace("\r\n", "\n")
    return text.removesuffix("\n")


def check_template(tokenizer: Any, advice: str) -> None:
    """Refuse a chat with a tokenizer that has no chat template."""
    from radar.tools.prompts import has_chat_template

    if not has_chat_template(tokenizer):
        raise UsageError(
            "this target's tokenizer has no chat template, so there is no telling how it takes a conversation: take "
            f"the model's chat or instruct version, {advice}"
        )


def figures(output: Any, options: dict[str, Any]) -> str:
    """One line about a generation and its options, for stderr."""
    m = output.metrics
    parts = [
        f"{m.num_tokens} tokens",
        f"{m.tokens_per_second:.1f} tokens/s",
        f"{m.mean_acceptance_length:.2f} tokens per target pass",
        f"{m.draft_calls_per_round:.2f} draft calls per round",
    ]
    if m.num_fallback_tokens:
        parts.append(f"{m.num_fallback_tokens} tokens by plain steps")
    if m.num_reused_prompt_tokens:
        parts.append(f"{m.num_reused_prompt_tokens} of {m.num_prompt_tokens} prompt tokens were cached")
    if options["do_sample"]:
        parts.append(f"seed {options['seed']}")
    ends = {"length": "ended by the limit of tokens", "cancelled": "stopped"}
    if output.finish_reason in ends:
        parts.append(ends[output.finish_reason])
    return f"[{', '.join(parts)}]"
