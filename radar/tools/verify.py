"""Is the text the target's own? Two decoders on the same prompts, and how near the target came to the other token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radar.generation.base import Decoder

__all__ = ["TIE_ULPS", "Difference", "TextComparison", "compare_texts", "plain_logits", "render"]

TIE_ULPS = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4}
"""Two tokens tie if their logits differ by so many units in the last place of the row's largest logit, or fewer.

A logit is a sum over states that went through every layer, so the size of the row counts, not that of the one logit.
Between a forward in chunks over a static cache and the stock one, the gap of the two best tokens moves by up to 7 units
in float32 and 3 in bfloat16 on the embedded pair; 16-bit logits move less because their last rounding is the largest.
"""


@dataclass(frozen=True)
class Difference:
    """Where two texts part.

    Attributes:
        prompt: index of the prompt.
        position: index of the first output token that differs.
        expected, found: the plain decoder's token and the other's; None where a text had ended.
        gap: logit of `expected` minus that of `found`, by a plain forward over the text before; NaN if one is None.
        bound: the largest gap that rounding explains at the target's dtype.
    """

    prompt: int
    position: int
    expected: int | None
    found: int | None
    gap: float
    bound: float

    @property
    def is_tie(self) -> bool:
        """Whether either token is the target's own, up to rounding."""
        return abs(self.gap) <= self.bound


@dataclass(frozen=True)
class TextComparison:
    """All differences, at most one a prompt, and how much was compared."""

    num_prompts: int
    num_tokens: int
    differences: tuple[Difference, ...]

    @property
    def is_lossless(self) -> bool:
        """No difference but ties."""
        return all(item.is_tie for item in self.differences)


def plain_logits(model: Any) -> Callable[[Sequence[int]], Tensor]:
    """The next token's logits [vocabulary] by the model's stock forward, without a cache, in the model's dtype."""

    def logits(ids: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            row: Tensor = model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, -1]
        return row

    return logits


def compare_texts(
    decoder: Decoder,
    plain: Decoder,
    logits: Callable[[Sequence[int]], Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    advance: Callable[[], object] = lambda: None,
) -> TextComparison:
    """Decode every prompt with both and find the first token that differs.

    Args:
        decoder: the one to check.
        plain: the one to trust, one token a pass.
        logits: token ids -> the target's logits for the next one [vocabulary]; their dtype sets the bound of a tie.
        prompts: token ids.
        max_new_tokens: limit of each output.
        advance: called after each prompt, for a progress bar.
    """
    differences, num_tokens = [], 0
    for index, prompt in enumerate(prompts):
        expected = plain.generate(prompt, max_new_tokens=max_new_tokens).token_ids
        found = decoder.generate(prompt, max_new_tokens=max_new_tokens).token_ids
        num_tokens += len(expected)
        if found != expected:
            differences.append(_first_difference(index, list(prompt), expected, found, logits))
        advance()
    return TextComparison(len(prompts), num_tokens, tuple(differences))


def _first_difference(
    index: int, prompt: list[int], expected: list[int], found: list[int], logits: Callable[[Sequence[int]], Tensor]
) -> Difference:
    shorter = min(len(expected), len(found))
    position = next((i for i in range(shorter) if expected[i] != found[i]), shorter)
    if position == shorter:  # one text is the beginning of the other
        ids = [text[position] if position < len(text) else None for text in (expected, found)]
        return Difference(index, position, ids[0], ids[1], math.nan, 0.0)
    row = logits(prompt + expected[:position])
    gap = float(row[expected[position]].double() - row[found[position]].double())
    return Difference(index, position, expected[position], found[position], gap, _tie_bound(row))


def _tie_bound(row: Tensor) -> float:
    """`TIE_ULPS` units in the last place of the largest magnitude: eps times the power of two at or below it."""
    largest = float(row.abs().max())
    unit = torch.finfo(row.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0
    return TIE_ULPS[row.dtype] * unit


def render(comparison: TextComparison, tokenizer: Any = None) -> str:
    """What `radar verify` prints."""

    def show(token: int | None) -> str:
        if token is None:
            return "the end of the text"
        return f"{token}" if tokenizer is None else f"{token} {tokenizer.decode([token])!r}"

    lines = []
    for item in comparison.differences:
        kind = f"a rounding tie (up to {item.bound:.3g})" if item.is_tie else "NOT a tie"
        if not item.is_tie and not math.isnan(item.gap):
            kind += f" (rounding explains up to {item.bound:.3g}, a few units in the last place of the largest logit)"
        lines.append(
            f"prompt {item.prompt + 1}, token {item.position}: expected {show(item.expected)}, "
            f"got {show(item.found)}; logit gap {item.gap:.3g}, {kind}"
        )
    equal = comparison.num_prompts - len(comparison.differences)
    lines.append(f"{equal} of {comparison.num_prompts} texts are identical ({comparison.num_tokens} tokens compared)")
    return "\n".join(lines)
