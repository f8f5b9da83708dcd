"""Prompt files: JSON lines with `prompt`, or the `turns` of MT-bench's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radar.errors import UsageError
from radar.generation.prompt import encode_prompt as encode

__all__ = [
    "PromptLine",
    "encode_prompt",
    "has_chat_template",
    "load_prompts",
    "read_lines",
    "read_text",
    "without_mark",
]

ANY_VOCABULARY = 2**31  # the tokenizer is the target's own
_FORMS = '{"prompt": "..."} or {"turns": ["...", ...]} with text in it'


@dataclass(frozen=True)
class PromptLine:
    """One prompt. `chat` asks for the tokenizer's chat template around it; `later` are the turns behind the first."""

    text: str
    chat: bool
    later: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        return (self.text, *self.later)


def without_mark(text: str) -> str:
    """The text without the byte-order mark that some editors and shells put in front."""
    return text.removeprefix("\ufeff")


def read_text(path: str | os.PathLike[str]) -> str:
    """All of a UTF-8 file, its line ends as `\\n`, without a byte-order mark.

    Raises:
        UsageError: names the file, if it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a UTF-8 file. `str.splitlines` would also split at characters that JSON strings may hold as they are."""
    return read_text(path).split("\n")


def load_prompts(path: str | os.PathLike[str], *, limit: int | None = None) -> list[PromptLine]:
    """Read a prompt file.

    A line is `{"prompt": "...", "chat": false}` (plain text, unless `chat` is true) or `{"turns": ["...", ...]}` (a
    chat). Other keys are ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        UsageError: names the line that is not of either form, or says that the file holds no prompt or is not UTF-8.
    """
    prompts: list[PromptLine] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        if limit is not None and len(prompts) >= limit:
            break
        prompts.append(_parse(line, f"{path}, line {number}"))
    if not prompts:
        raise UsageError(f"{path} holds no prompts: expected lines of {_FORMS}")
    return prompts


def _parse(line: str, where: str) -> PromptLine:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if isinstance(record, dict):
        turns, text = record.get("turns"), record.get("prompt")
        if isinstance(text, str) and text:
            return PromptLine(without_mark(text), bool(record.get("chat", False)))
        if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn for turn in turns):
            return PromptLine(without_mark(turns[0]), True, tuple(turns[1:]))
    raise UsageError(f"{where}: expected {_FORMS}")


def has_chat_template(tokenizer: Any) -> bool:
    """Whether messages can be encoded. Some tokenizers bring a program instead of a template, so it is tried."""
    if getattr(tokenizer, "chat_template", None):
        return True
    try:
        return bool(tokenizer.apply_chat_template([{"role": "user", "content": "."}], tokenize=True))
    except Exception:
        return False


def encode_prompt(prompt: PromptLine, tokenizer: Any, answers: Sequence[str] = ()) -> list[int]:
    """Token ids of a prompt: in the chat template, with its generation prompt, if asked for, else the plain text.

    Args:
        prompt: the line.
        tokenizer: a transformers tokenizer.
        answers: to the first turns; the turn behind them is what is encoded, and they stand in front of it.

    Raises:
        UsageError: for a chat and a tokenizer without a template.
    """
    if not prompt.chat:
        return encode(prompt.text, tokenizer, ANY_VOCABULARY).ids
    messages = [{"role": "user", "content": prompt.text}]
    for answer, turn in zip(answers, prompt.later, strict=False):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return encode(messages, tokenizer, ANY_VOCABULARY).ids
