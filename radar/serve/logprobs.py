"""Log-probabilities of the tokens of a text, and the two forms that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.serve.token_names import TokenNames

__all__ = ["LogprobRecorder", "TokenLogprob", "chat_form", "completion_form"]

LEAST = -9999.0  # as OpenAI's: JSON has no infinity


class TokenLogprob(NamedTuple):
    """A token's natural log-probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class LogprobRecorder:
    """A logits processor and a stopping criterion in one, of one text, which goes by the host for it.

    The processor sees a token's scores before temperature and filters, behind biases and penalties; the criterion sees
    the token that was chosen. So one row of scores is held at a time, however late the text is read.

    Args:
        count: of likeliest tokens.
        begin: tokens of the prompt.

    Attributes:
        found: a `TokenLogprob` for each token of the output, those that are not read yet included.
    """

    def __init__(self, count: int, begin: int) -> None:
        self._count, self._begin = count, begin
        self._row: Tensor | None = None
        self.found: list[TokenLogprob] = []

    def process(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` [1, L], `scores` [1, V] -> the same scores."""
        self._row = torch.log_softmax(scores[0].float(), dim=-1)
        return scores

    def criterion(self, input_ids: Tensor, scores: Any) -> bool:
        """`input_ids` [1, L]; never the end."""
        if self._row is not None and input_ids.shape[1] == self._begin + len(self.found) + 1:
            token, row = int(input_ids[0, -1]), self._row
            values, ids = row.topk(min(self._count, len(row)))
            top = [(int(one), _finite(value)) for one, value in zip(ids.tolist(), values.tolist(), strict=True)]
            self.found.append(TokenLogprob(token, _finite(float(row[token])), top))
            self._row = None
        return False


def _finite(value: float) -> float:
    return max(LEAST, value)


def chat_form(tokens: Sequence[TokenLogprob], names: TokenNames) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        name, data = names[token]
        return {"token": name, "logprob": logprob, "bytes": None if data is None else list(data)}

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_form(tokens: Sequence[TokenLogprob], offsets: Sequence[int], names: TokenNames) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `offsets`: characters of the text before each of its tokens."""
    return {
        "tokens": [names[one.token][0] for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [_likeliest(one, names) for one in tokens] if any(one.top for one in tokens) else None,
        "text_offset": list(offsets),
    }


def _likeliest(one: TokenLogprob, names: TokenNames) -> dict[str, float]:
    named = {names[token][0]: value for token, value in reversed(one.top)}  # of equal names the likelier
    return named | {names[one.token][0]: one.logprob}
