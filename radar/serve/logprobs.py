"""The two forms that OpenAI gives to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radar.metrics import TokenLogprob
from radar.serve.token_names import TokenNames

__all__ = ["chat_form", "completion_form"]

LEAST = -9999.0  # as OpenAI's: JSON has no infinity


def chat_form(tokens: Sequence[TokenLogprob], names: TokenNames) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        name, data = names[token]
        return {"token": name, "logprob": max(LEAST, logprob), "bytes": None if data is None else list(data)}

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_form(tokens: Sequence[TokenLogprob], offsets: Sequence[int], names: TokenNames) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `offsets`: characters of the text before each of its tokens."""
    return {
        "tokens": [names[one.token][0] for one in tokens],
        "token_logprobs": [max(LEAST, one.logprob) for one in tokens],
        "top_logprobs": [_likeliest(one, names) for one in tokens] if any(one.top for one in tokens) else None,
        "text_offset": list(offsets),
    }


def _likeliest(one: TokenLogprob, names: TokenNames) -> dict[str, float]:
    named = {names[token][0]: max(LEAST, value) for token, value in reversed(one.top)}  # of equal names the likelier
    return named | {names[one.token][0]: max(LEAST, one.logprob)}
