"""Tool calls out of a text, where a model writes them as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
as Hermes and Qwen do. What is not of that form stays text."""

from __future__ import annotations

import json
import secrets
from typing import Any

from radar.serve.stops import StopFilter

__all__ = ["ToolCallParser"]

BEGIN, END = "<tool_call>", "</tool_call>"


class ToolCallParser:
    """Takes text piece by piece.

    Attributes:
        calls: those found so far, in OpenAI's form.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._begin = StopFilter([BEGIN])
        self._inside: str | None = None

    def push(self, text: str) -> str:
        """Take text; returns what is content for certain."""
        out = ""
        while text or self._inside is None:
            if self._inside is None:
                before, whole = self._begin.push(text), self._begin.found
                out += before
                if not whole:
                    return out
                text, self._inside = self._begin.rest, ""
                self._begin = StopFilter([BEGIN])
            self._inside, text = self._inside + text, ""
            body, mark, rest = self._inside.partition(END)
            if not mark:
                return out
            call = _call(body)
            if call is None:
                out += BEGIN + body + END
            else:
                self.calls.append(call | {"index": len(self.calls)})
            self._inside, text = None, rest
        return out

    def finish(self) -> str:
        """What is left is content: a call that was begun and not ended is none."""
        left = self._begin.finish() if self._inside is None else BEGIN + self._inside
        self._inside = None
        return left


def _call(body: str) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
