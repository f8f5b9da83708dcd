"""Token ids as text, whole or in pieces: one way, so that the pieces of a stream are the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Detokenizer", "decode_as_is", "text_of"]

# Clean-up takes back spaces: " ." becomes ".", " n't" becomes "n't". Every such pattern begins with a space, and what a
# pattern may have before its last character ends with one of these. Behind any other character nothing begins in front
# of it, so both sides are cleaned apart.
_OPEN_END = re.compile(r"[ 'nvr]*\Z")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of ids without special tokens: what `tokenizer.decode(ids, skip_special_tokens=True)` says."""
    whole = Detokenizer(tokenizer)
    return whole.push(ids) + whole.finish()


def decode_as_is(tokenizer: Any) -> Callable[..., str]:
    """`tokenizer.decode` without a clean-up of spaces."""
    decode: Callable[..., str] = tokenizer.decode
    if _clean_up_of(tokenizer) is None:
        return decode
    return lambda ids, **options: decode(ids, clean_up_tokenization_spaces=False, **options)


class Detokenizer:
    """Text piece by piece. A piece is handed out once it is certain, because it cannot be taken back: characters that
    span several tokens when they are whole, bytes when the run of them is over, spaces when no clean-up can take them.

    Args:
        tokenizer: decodes ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = decode_as_is(tokenizer)
        self._clean_up = _clean_up_of(tokenizer)
        self._special = frozenset(getattr(tokenizer, "all_special_ids", None) or ())
        self._is_byte = _byte_test(tokenizer)
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text is out, or waits for the clean-up
        self._anchor = 0  # decode from here, so that a piece keeps the spacing that its context gives it
        self._waiting = ""  # not cleaned yet

    def push(self, ids: Sequence[int]) -> str:
        """Take tokens; returns the text that is certain now, which may be empty."""
        self._ids.extend(ids)
        self._waiting += self._advance(self._settled(), at_end=False)
        if self._clean_up is None:
            piece, self._waiting = self._waiting, ""
            return piece
        place = _OPEN_END.search(self._waiting)
        return self._cleaned(place.start() if place and _has_known_rules(self._clean_up) else 0)

    def finish(self) -> str:
        """The rest: nothing follows."""
        self._waiting += self._advance(len(self._ids), at_end=True)
        return self._cleaned(len(self._waiting))

    def _cleaned(self, count: int) -> str:
        piece, self._waiting = self._waiting[:count], self._waiting[count:]
        return piece if self._clean_up is None else self._clean_up(piece)

    def _settled(self) -> int:
        """Tokens before the run of byte tokens at the end: one more could make none of them a character."""
        end = place = len(self._ids)
        while place > self._shown and (self._ids[place - 1] in self._special or self._is_byte(self._ids[place - 1])):
            place -= 1
            if self._ids[place] not in self._special:
                end = place
        return end

    def _advance(self, end: int, *, at_end: bool) -> str:
        before = self._decode(self._ids[self._anchor : self._shown], skip_special_tokens=True)
        after = self._decode(self._ids[self._anchor : end], skip_special_tokens=True)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not at_end):
            return ""
        self._anchor, self._shown = self._shown, end
        return after[len(before) :]


def _clean_up_of(tokenizer: Any) -> Callable[[str], str] | None:
    """What `tokenizer.decode` does to spaces; None: nothing."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    if type(model).__name__ == "BPE" and not forced:  # transformers leaves these alone
        return None
    clean_up: Callable[[str], str] = tokenizer.clean_up_tokenization
    return clean_up


def _has_known_rules(clean_up: Callable[[str], str]) -> bool:
    """Whether it is transformers' own and not one of a tokenizer's making, whose pieces wait for the end."""
    return getattr(clean_up, "__module__", "") == "transformers.tokenization_utils_base"


def _byte_test(tokenizer: Any) -> Callable[[int], bool]:
    """Whether a token is a byte that characters outside of the vocabulary are made of."""
    name_of = getattr(tokenizer, "convert_ids_to_tokens", None)
    known: dict[int, bool] = {}

    def is_byte(token: int) -> bool:
        if token not in known:
            name = None if name_of is None else name_of(token)
            known[token] = isinstance(name, str) and _BYTE.fullmatch(name) is not None
        return known[token]

    return is_byte
