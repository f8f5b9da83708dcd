"""Many prompts in one call: what is one, what are many, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from radar.config import SamplingParams
from radar.errors import BusyError
from radar.generation.request import Request
from radar.generation.sequence import Sequence as Text
from radar.generation.streamers import feed
from radar.generation.turns import RoundMaker

__all__ = ["Prompts", "are_many", "decode_all", "seeded"]

Prompts = Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Sequence[Sequence[Mapping[str, Any]]]

_WHOLE = (str, bytes, bytearray, memoryview)


def are_many(prompt: object) -> bool:
    """Whether it is a list of prompts: a list of numbers is one, and so is one of messages."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, _WHOLE) or not prompt:
        return False
    first = prompt[0]
    if isinstance(first, Tensor | np.ndarray):
        return first.ndim > 0
    return isinstance(first, str | Sequence) and not isinstance(first, bytes | bytearray | memoryview)


def seeded(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The options of prompt `number`: one seed is one text, so each has a seed of its own, that of the call plus its
    number."""
    own = dict(options)
    if isinstance(seed := own.get("seed"), int) and not isinstance(seed, bool):
        own["seed"] = seed + number
    sampling = own.get("sampling")
    if isinstance(sampling, SamplingParams) and sampling.seed is not None:
        own["sampling"] = replace(sampling, seed=sampling.seed + number)
    return own


def decode_all(
    count: int, request: Callable[[int], Request], maker: RoundMaker
) -> tuple[dict[int, Text], dict[int, Exception]]:
    """Decode requests to their ends.

    Args:
        count: how many.
        request: makes one, by its number; each starts as soon as it is made.
        maker: of the decoder.

    Returns:
        Texts and errors, by number; a text that failed halfway is in both.
    """
    texts: dict[int, Text] = {}
    errors: dict[int, Exception] = {}
    with maker.undisturbed():
        try:
            for number in range(count):
                try:
                    texts[number] = maker.open(request(number))
                except BusyError:
                    raise  # not of this prompt
                except Exception as error:  # tokenizers and templates raise what they like
                    errors[number] = error
            for number, text in texts.items():
                try:
                    feed(text, None)
                except BusyError:
                    raise
                except Exception as error:  # and so do processors and criteria
                    errors[number] = error
        finally:
            for text in texts.values():
                text.close()
    return texts, errors
