"""Where a text parts from the text that was expected, and whether rounding explains it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from radar.tools.table import table
from radar.tools.texts import Text

__all__ = ["TIE_ULPS", "Difference", "find_differences", "render_differences", "summarize_differences"]

TIE_ULPS = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4}
"""Two tokens tie if their logits differ by so many units in the last place of the row's largest logit, or fewer.

A logit is a sum over states that went through every layer, so the size of the row counts, not that of the one logit.
Between a forward in chunks over a static cache and the stock one, the gap of the two best tokens moves by up to 7 units
in float32 and 3 in bfloat16 on the embedded pair; 16-bit logits move less because their last rounding is the largest.
"""

MOST_SHOWN = 20


@dataclass(frozen=True)
class Difference:
    """The first token at which two texts differ.

    Attributes:
        decoder: whose text is not the expected one.
        prompt, turn: which text: index of the prompt, and of the turn in it.
        position: index of the output token.
        expected, found: the token that was expected and the decoder's; None where a text had ended.
        gap: log-probability of `expected` minus that of `found` [nats], after the text before; NaN if one is None.
        bound: the largest gap that rounding explains in the target's dtype [nats].
    """

    decoder: str
    prompt: int
    turn: int
    position: int
    expected: int | None
    found: int | None
    gap: float
    bound: float

    @property
    def is_tie(self) -> bool:
        """Whether either token is the target's own, up to rounding."""
        return abs(self.gap) <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return asdict(self) | {"gap": None if math.isnan(self.gap) else self.gap, "is_tie": self.is_tie}


def find_differences(
    texts: Iterable[Text], scores: Callable[[list[int]], Tensor], dtype: torch.dtype
) -> list[Difference]:
    """Compare the outputs of each text with its first one.

    Args:
        texts: that were decoded; texts that part in the same way again, in another repeat, count once.
        scores: ids of a text -> logits [V] of its next token, asked once a difference, for the text before it.
        dtype: of the model's arithmetic, which sets the bound of a tie.
    """
    found: dict[tuple[object, ...], Difference] = {}
    for text in texts:
        for decoder, output in text.outputs.items():
            if output == text.expected:
                continue
            position, expected, other = _first_difference(text.expected, output)
            key = (decoder, text.prompt, text.turn, position, expected, other)
            if key in found:
                continue
            gap, bound = math.nan, 0.0
            if expected is not None and other is not None:
                row = scores([*text.prompt_ids, *output[:position]]).double()
                gap, bound = float(row[expected] - row[other]), _tie_bound(row, dtype)
            found[key] = Difference(decoder, text.prompt, text.turn, position, expected, other, gap, bound)
    return list(found.values())


def _first_difference(expected: Sequence[int], found: Sequence[int]) -> tuple[int, int | None, int | None]:
    """Position, and the two tokens there; None where a text had ended."""
    pairs = itertools.zip_longest(expected, found)
    return next((index, one, other) for index, (one, other) in enumerate(pairs) if one != other)


def _tie_bound(row: Tensor, dtype: torch.dtype) -> float:
    """`TIE_ULPS` units in the last place of the largest magnitude: eps times the power of two at or below it."""
    largest = float(row[row.isfinite()].abs().max())
    unit = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0
    return TIE_ULPS.get(dtype, 8) * unit


def summarize_differences(differences: Sequence[Difference], num_texts: int, dtype: torch.dtype) -> str:
    """One line: how many texts part, and whether ties explain it."""
    if not differences:
        return f"all {num_texts} texts are the same, token for token"
    name, parting = str(dtype).removeprefix("torch."), f"{len(differences)} of {num_texts} texts part"
    ties = sum(one.is_tie for one in differences)
    if ties == len(differences):
        return f"{parting}, each at a tie: there two tokens are as likely as each other to {name}'s precision"
    return f"{parting}, {len(differences) - ties} of them where rounding in {name} does not explain it"


def render_differences(differences: Sequence[Difference], tokenizer: Any, reference: str) -> str:
    """A table of the differences, those that are no ties first."""

    def show(token: int | None) -> str:
        if token is None:
            return "the end"
        return str(token) if tokenizer is None else f"{tokenizer.decode([token])!r} ({token})"

    headers = ["prompt", "decoder", "position [token]", f"{reference} writes", "it writes"]
    headers += ["gap [nats]", "rounding [nats]", "verdict"]
    rows = [
        [
            f"{one.prompt + 1}, turn {one.turn + 1}" if any(item.turn for item in differences) else one.prompt + 1,
            one.decoder,
            one.position + 1,
            show(one.expected),
            show(one.found),
            f"{one.gap:.3g}",
            f"{one.bound:.3g}",
            "a tie" if one.is_tie else "NOT a tie",
        ]
        for one in sorted(differences, key=lambda item: item.is_tie)
    ]
    lines = [table(headers, rows[:MOST_SHOWN])]
    if len(rows) > MOST_SHOWN:
        lines.append(f"and {len(rows) - MOST_SHOWN} more")
    lines += [
        "gap: by how much the stock model finds the first token likelier than the second, in log-probability",
        "rounding: how much of that another order of sums explains",
    ]
    return "\n".join(lines)
