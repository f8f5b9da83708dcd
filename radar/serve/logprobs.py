"""Log-probabilities of the tokens of a text, and the two forms that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def chat_form(tokens: Sequence[TokenLogprob], tokenizer: Any) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = _text(token, tokenizer)
        known = None if "\ufffd" in text else list(text.encode())  # a piece of a character: not told
        return {"token": text, "logprob": logprob, "bytes": known}

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_form(tokens: Sequence[TokenLogprob], tokenizer: Any, offset: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `offset`: characters of the text before its first token."""
    texts = [_text(one.token, tokenizer) for one in tokens]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [_likeliest(one, tokenizer) for one in tokens] if any(one.top for one in tokens) else None,
        "text_offset": offsets,
    }


def _likeliest(one: TokenLogprob, tokenizer: Any) -> dict[str, float]:
    named = {_text(token, tokenizer): value for token, value in reversed(one.top)}  # of equal texts the likelier
    return {_text(one.token, tokenizer): one.logprob} | named


def _text(token: int, tokenizer: Any) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text
