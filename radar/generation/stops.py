"""Ends of a text: end tokens, criteria that are asked after every token, and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radar.engine.upload import upload
from radar.errors import UsageError
from radar.generation.detokenize import decode_as_is

__all__ = ["StopCriterion", "StopStrings", "TextEnd", "end_token_ids"]


class StopStrings:
    """End a text once its newest token completes one of them; a string may begin inside of the prompt or a token.

    Args:
        tokenizer: decodes ids.
        strings: one or several.

    Raises:
        ValueError: without a tokenizer, or for an empty string.
    """

    def __init__(self, tokenizer: Any, strings: str | Sequence[str]) -> None:
        self.strings = (strings,) if isinstance(strings, str) or not isinstance(strings, Iterable) else tuple(strings)
        if tokenizer is None:
            raise UsageError("stop_strings needs a tokenizer; pass tokenizer= to the decoder, or use eos_token_id")
        wrong = [text for text in self.strings if not isinstance(text, str) or not text]
        if wrong or not self.strings:
            raise UsageError(f"stop_strings must be a string or several, none empty, got {strings!r}")
        self._decode = decode_as_is(tokenizer)
        # tokens that hold a whole string, the ends of a token and of a character on its left included
        self._reach = max(len(text.encode()) for text in self.strings) + 8

    def end(self, ids: Sequence[int]) -> bool:
        """Whether `ids`, prompt and output, do; on the host, so that no device is asked."""
        ids = list(ids[-self._reach :])
        before: str = self._decode(ids[:-1], skip_special_tokens=False).rstrip("\ufffd")
        after: str = self._decode(ids, skip_special_tokens=False)
        return any(after.find(text, max(0, len(before) - len(text) + 1)) >= 0 for text in self.strings)


# (input_ids [1, L], scores or None) -> bool or bool tensor [1]
StopCriterion = StopStrings | Callable[[Tensor, Any], Any]


class TextEnd:
    """Why a text ends, asked once for every token of its output, in order; asked again it remembers.

    Args:
        prompt: token ids.
        limit: tokens of the output, at most.
        end_token_ids: that end the text.
        criteria: called as f(input_ids [1, L], scores), strings aside; the first that holds ends the text.
        device: of `input_ids`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        end_token_ids: frozenset[int],
        criteria: Sequence[StopCriterion],
        device: torch.device,
    ) -> None:
        self._begin, self._limit, self._ends = len(prompt), limit, end_token_ids
        self._strings = [item for item in criteria if isinstance(item, StopStrings)]
        self._criteria = [item for item in criteria if not isinstance(item, StopStrings)]
        self._reasons: list[str | None] = []
        self._scores: list[Tensor] = []
        length = len(prompt) + limit if self._criteria else 0
        self._ids = torch.zeros((1, length), dtype=torch.int64, device=device)
        if self._criteria:
            self._ids[0, : len(prompt)] = upload(list(prompt), device)

    def reason(self, text: Sequence[int], scores: Tensor | None) -> str | None:
        """Whether the text ends with its last token: "stop" or "length", else None.

        Args:
            text: prompt and output.
            scores: the last token's processed scores [V] if there are any, which criteria then get, of all tokens.
        """
        place = len(text) - self._begin
        if place > len(self._reasons):
            if scores is not None and self._criteria:
                self._scores.append(scores[None])
            is_whole = any(item.end(text) for item in self._strings)
            stops = is_whole or text[-1] in self._ends
            if self._criteria and not is_whole:
                self._ids[0, len(text) - 1].fill_(text[-1])  # an assignment would wait for the rounds of all texts
                ids, known = self._ids[:, : len(text)], tuple(self._scores) or None
                stops |= any(_is_met(item, item(ids, known)) for item in self._criteria)
            self._reasons.append("stop" if stops else "length" if place == self._limit else None)
        return self._reasons[place - 1]

    def ends(self, text: Sequence[int], scores: Tensor | None) -> bool:
        """`reason`, for `HostProcessing`."""
        return self.reason(text, scores) is not None


def _is_met(criterion: object, found: object) -> bool:
    if isinstance(found, bool | int | np.bool_) or (isinstance(found, Tensor) and found.numel() == 1):
        return bool(found)
    name = getattr(criterion, "__name__", type(criterion).__name__)
    what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.80}"
    raise UsageError(f"the stopping criterion {name} must return a bool or a bool tensor [1]; it returned {what}")


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: the model's generation config, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    if ids is None:
        return []
    return [int(ids)] if isinstance(ids, int) else [int(token) for token in ids]
