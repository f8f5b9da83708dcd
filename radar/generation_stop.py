"""Ends of a text beside end tokens and limits: criteria that are asked after every token, and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["StopCriterion", "StopStrings", "first_stop"]

StopCriterion = Callable[[Tensor, Any], Any]  # (input_ids [1, L], scores or None) -> bool or bool tensor [1]


class StopStrings:
    """True once the newest token completes one of the strings; a string may begin inside of the prompt or a token.

    Args:
        tokenizer: decodes ids.
        strings: one or several.

    Raises:
        ValueError: without a tokenizer, or for an empty string.
    """

    def __init__(self, tokenizer: Any, strings: str | Sequence[str]) -> None:
        self.strings = (strings,) if isinstance(strings, str) or not isinstance(strings, Iterable) else tuple(strings)
        if tokenizer is None:
            raise ValueError("stop_strings needs a tokenizer; pass tokenizer= to the decoder, or use eos_token_id")
        wrong = [text for text in self.strings if not isinstance(text, str) or not text]
        if wrong or not self.strings:
            raise ValueError(f"stop_strings must be a string or several, none empty, got {strings!r}")
        self._decode = tokenizer.decode
        # tokens that hold a whole string, the ends of a token and of a character on its left included
        self._reach = max(len(text.encode()) for text in self.strings) + 8

    def __call__(self, input_ids: Tensor, scores: Any = None) -> bool:
        """`input_ids` [1, L]: prompt and output."""
        ids = input_ids[0, -self._reach :].tolist()
        before: str = self._decode(ids[:-1], skip_special_tokens=False).rstrip("\ufffd")
        after: str = self._decode(ids, skip_special_tokens=False)
        return any(after.find(text, max(0, len(before) - len(text) + 1)) >= 0 for text in self.strings)


def first_stop(
    criteria: Sequence[StopCriterion], text: Sequence[int], tokens: Sequence[int], device: torch.device, scores: Any
) -> int | None:
    """How many of `tokens` behind `text` there are when the first criterion holds; None: none does.

    Args:
        scores: of all tokens of the output [1, V] each, for criteria that read them; None if they are not kept.
    """
    ids = torch.tensor([[*text, *tokens]], device=device)
    for count in range(1, len(tokens) + 1):
        length = len(text) + count
        known = None if scores is None else scores[: len(scores) - len(tokens) + count]
        if any(bool(torch.as_tensor(item(ids[:, :length], known)).any()) for item in criteria):
            return count
    return None
