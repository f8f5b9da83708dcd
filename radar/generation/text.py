"""A generation as pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from radar.generation.sequence import GenerationOutput, Sequence

__all__ = ["TextStream"]


class TextStream(Iterator[str]):
    """Pieces of text; their concatenation is the output's text. `output` is there once the stream has ended.

    Characters that span several tokens are held back until they are whole. A stream that is left early ends by `close`,
    or by `with`; the decoder is free for the next generation then.

    Args:
        tokenizer: decodes ids.
        sequence: the generation.
        finish: makes the finished generation.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence: Sequence,
        finish: Callable[[], GenerationOutput],
    ) -> None:
        self._decode = tokenizer.decode
        self._source = sequence
        self._finish = finish
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text is out
        self._anchor = 0  # decode from here, so that a piece keeps the spacing that its context gives it
        self._ended = False

    def __iter__(self) -> TextStream:
        return self

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the generation here; `output` holds what has come so far."""
        self._source.close()
        self._ended = True

    def __next__(self) -> str:
        while not self._ended:
            item = next(self._source, None)
            if item is None:
                self._ended = True
            else:
                self._ids.extend(item.tokens)
            piece = self._advance()
            if piece:
                return piece
        raise StopIteration

    def _advance(self) -> str:
        before: str = self._decode(self._ids[self._anchor : self._shown], skip_special_tokens=True)
        after: str = self._decode(self._ids[self._anchor :], skip_special_tokens=True)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not self._ended):
            return ""
        self._anchor, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    @property
    def output(self) -> GenerationOutput:
        """The finished generation. Raises RuntimeError while text is still to come."""
        if not self._ended:
            raise RuntimeError("the stream has not ended yet: iterate over it first")
        return self._finish()
