"""Which conversation a request goes on with: those of one go to one replica, which holds the text before it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

__all__ = ["conversation"]

CHARACTERS, TOKENS = 256, 64  # of a prompt's begin: about a page of the cache, and less than that is not reused


def conversation(body: bytes) -> str | None:
    """A name of the conversation, the same for all of its turns; None for a body that has none.

    It is the request's `prompt_cache_key`, else the messages to the first of the user, else the begin of the prompt.
    """
    try:
        fields = json.loads(body)
        begin = _begin(fields) if isinstance(fields, dict) else None
        if begin is None:
            return None
        return sha256(json.dumps([fields.get("model"), begin]).encode()).hexdigest()
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return None


def _begin(fields: dict[str, Any]) -> Any:
    key, messages, prompt = (fields.get(name) for name in ("prompt_cache_key", "messages", "prompt"))
    if isinstance(key, str):
        return [key]
    if isinstance(messages, list):
        roles = [one.get("role") if isinstance(one, dict) else None for one in messages]
        return messages[: roles.index("user") + 1] if "user" in roles else messages[:1]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt[:CHARACTERS]
    return prompt[:TOKENS] if isinstance(prompt, list) else None
