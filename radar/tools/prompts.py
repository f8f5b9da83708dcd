"""Prompt files: JSON lines with `prompt`, or the `turns` of MT-bench's format."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radar.errors import UsageError

__all__ = ["PromptLine", "encode_prompt", "load_prompts", "read_lines", "read_text"]


@dataclass(frozen=True)
class PromptLine:
    """One prompt. `chat` asks for the tokenizer's chat template around it."""

    text: str
    chat: bool


def read_text(path: str | os.PathLike[str]) -> str:
    """All of a UTF-8 file, its line ends as `\\n`. Raises ValueError, with the file's name, if it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a UTF-8 file. `str.splitlines` would also split at characters that JSON strings may hold as they are."""
    return read_text(path).split("\n")


def load_prompts(path: str | os.PathLike[str], *, limit: int | None = None) -> list[PromptLine]:
    """Read a prompt file.

    A line is `{"prompt": "...", "chat": false}` (plain text, unless `chat` is true) or `{"turns": ["..."]}` (a chat, of
    which the first turn is taken). Other keys are ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: names the line that is not of either form, or says that the file holds no prompt or is not UTF-8.
    """
    prompts: list[PromptLine] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        if limit is not None and len(prompts) >= limit:
            break
        prompts.append(_parse(line, f"{path}, line {number}"))
    if not prompts:
        raise UsageError(f"{path} holds no prompts")
    return prompts


def _parse(line: str, where: str) -> PromptLine:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if isinstance(record, dict):
        turns, text = record.get("turns"), record.get("prompt")
        if isinstance(text, str) and text:
            return PromptLine(text, bool(record.get("chat", False)))
        if isinstance(turns, list) and turns and isinstance(turns[0], str) and turns[0]:
            return PromptLine(turns[0], chat=True)
    raise UsageError(f'{where}: expected {{"prompt": "..."}} or {{"turns": ["..."]}} with text in it')


def encode_prompt(prompt: PromptLine, tokenizer: Any) -> list[int]:
    """Token ids of a prompt: the chat template with its generation prompt if asked for, else the plain text."""
    if prompt.chat and getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": prompt.text}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt.text)["input_ids"])
