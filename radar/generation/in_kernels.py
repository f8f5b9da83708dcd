"""Which of transformers' processors our kernels stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from radar.config import SamplingParams
from radar.errors import UsageError

__all__ = ["check_biases", "sampling_in_kernels"]

_WARPERS = {
    TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}  # fmt: skip
# as the kernels go about it: bias, penalty, then the rest; a ban is a bias of -inf, which a penalty does not change
_ORDER = (
    SequenceBiasLogitsProcessor, RepetitionPenaltyLogitsProcessor, NoBadWordsLogitsProcessor,
    SuppressTokensLogitsProcessor, *_WARPERS,
)  # fmt: skip


def check_biases(processors: Sequence[Any], vocab_size: int) -> None:
    """Raise UsageError for a biased or forbidden token that is not in the vocabulary."""
    for item in processors:
        if isinstance(item, SequenceBiasLogitsProcessor):
            wrong = [token for sequence in item.sequence_bias for token in sequence if token >= vocab_size]
            if wrong:
                name = "bad_words_ids" if isinstance(item, NoBadWordsLogitsProcessor) else "logit_bias or sequence_bias"
                raise UsageError(f"{name} names token {wrong[0]}, but the vocabulary ends at {vocab_size - 1}")


def sampling_in_kernels(
    processors: Sequence[Any], *, do_sample: bool, seed: int, vocab_size: int
) -> SamplingParams | None:
    """What the processors do, as sampling parameters; None if they do something else, or in another order."""
    kinds = [type(item) for item in processors]
    if kinds != [kind for kind in _ORDER if kind in kinds]:
        return None
    values: dict[str, Any] = {"temperature": 1.0 if do_sample else 0.0}
    bias: dict[int, float] = {}
    for item in processors:
        if isinstance(item, SequenceBiasLogitsProcessor):
            if any(len(sequence) > 1 for sequence in item.sequence_bias):
                return None
            for (token,), value in item.sequence_bias.items():
                bias[int(token)] = bias.get(int(token), 0.0) + value
        elif isinstance(item, SuppressTokensLogitsProcessor):
            bias |= {token: -math.inf for token in item.suppress_tokens.tolist() if 0 <= token < vocab_size}
        elif isinstance(item, RepetitionPenaltyLogitsProcessor):
            ignored = item.prompt_ignore_length
            if ignored is not None and bool(torch.as_tensor(ignored).any()):
                return None
            values["repetition_penalty"] = item.penalty
        elif do_sample:  # the most likely token is the same before temperature and filters
            if getattr(item, "min_tokens_to_keep", 1) != 1 or getattr(item, "filter_value", -math.inf) != -math.inf:
                return None
            name = _WARPERS[type(item)]
            values[name] = getattr(item, name)
    try:
        return SamplingParams(seed=seed, logit_bias=bias or None, **values)
    except UsageError:  # a value beyond what float32 kernels can work with
        return None
