"""What tokens are called where their log-probabilities are told, and their bytes."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["TokenNames"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_OWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that byte-level vocabularies write as is
_BYTES = {chr(byte): byte for byte in _OWN}
_BYTES |= {chr(0x100 + place): byte for place, byte in enumerate(sorted({*range(0x100)} - {*_OWN}))}


class TokenNames(dict[int, tuple[str, bytes | None]]):
    """A token's text and bytes, found out once each. A part of a character is called by its bytes, `bytes:\\xe6`, as
    OpenAI does, so that two parts have two names; bytes are None where the tokenizer does not tell them.

    Args:
        tokenizer: decodes ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> tuple[str, bytes | None]:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        data = text.encode() if "\ufffd" not in text else self._part(token, text)
        name = text if data is None or "\ufffd" not in text else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        self[token] = name, data
        return self[token]

    def _part(self, token: int, text: str) -> bytes | None:
        """Bytes of a token by its name in the vocabulary."""
        name_of = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        name = None if name_of is None else name_of(token)
        if not isinstance(name, str):
            return None
        if byte := _BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        data = bytes(_BYTES[one] for one in name) if set(name) <= _BYTES.keys() else b""
        return data if data.decode(errors="replace") == text else None
