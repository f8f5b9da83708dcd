"""A generation as pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from radar.generation.detokenize import Detokenizer
from radar.generation.sequence import GenerationOutput, Sequence

__all__ = ["TextStream"]


class TextStream(Iterator[str]):
    """Pieces of text; their concatenation is the output's text. `output` is there once the stream has ended.

    What a later token could change is held back until it is certain, see `Detokenizer`. A stream that is left early
    ends by `close`, or by `with`; the decoder is free for the next generation then.

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
        self._text = Detokenizer(tokenizer)
        self._source = sequence
        self._finish = finish
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
            piece = self._text.finish() if item is None else self._text.push(item.tokens)
            if piece:
                return piece
        raise StopIteration

    @property
    def output(self) -> GenerationOutput:
        """The finished generation. Raises RuntimeError while text is still to come."""
        if not (self._ended or self._source.finish_reason == "error"):
            raise RuntimeError("the stream has not ended yet: iterate over it first")
        return self._finish()
