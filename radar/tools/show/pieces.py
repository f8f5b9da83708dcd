"""The text of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Piece", "pieces", "token_text"]


class Piece(NamedTuple):
    """What a token adds to a text; of a special token, which adds nothing, its name."""

    text: str
    is_special: bool = False


def pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[Piece]:
    """Split a text by its tokens; the pieces that are not special add up to it.

    A character that spans several tokens belongs to the last of them.
    """
    special = set(tokenizer.all_special_ids)
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    found, certain = [], 0
    for end, token in enumerate(token_ids, start=1):
        if token in special:
            found.append(Piece(tokenizer.decode([token], skip_special_tokens=False), True))
            continue
        reached = max(certain, _common(tokenizer.decode(token_ids[:end], skip_special_tokens=True), text))
        found.append(Piece(text[certain:reached]))
        certain = reached
    return found


def _common(one: str, other: str) -> int:
    """Length of what two texts have in common from their start."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def token_text(tokenizer: Any, token: int) -> str:
    """The text of a token inside of a text, or its name where it is no whole character."""
    once, twice = (
        tokenizer.decode([token] * count, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for count in (1, 2)
    )
    text = twice[len(once) :]  # the second: some tokenizers drop the space before a text's first word
    if text and "\ufffd" not in text:
        return str(text)
    return tokenizer.convert_ids_to_tokens(token) or f"<{token}>"
