"""A generation as pieces of text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from radar.generation.detokenize import Detokenizer
from radar.generation.sequence import GenerationOutput, Sequence
from radar.metrics import Round

__all__ = ["AsyncTextStream", "TextStream"]


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
            if piece := self._piece(next(self._source, None)):
                return piece
        raise StopIteration

    async def anext(self) -> str | None:
        """The next piece, in an event loop that goes on meanwhile; None: there is none."""
        while not self._ended:
            if piece := self._piece(await self._source.anext()):
                return piece
        return None

    def _piece(self, item: Round | None) -> str:
        """What is certain with another round; None: there is none."""
        if item is None:
            self._ended = True
            return self._text.finish()
        return self._text.push(item.tokens)

    @property
    def output(self) -> GenerationOutput:
        """The finished generation. Raises RuntimeError while text is still to come."""
        if not (self._ended or self._source.finish_reason == "error"):
            raise RuntimeError("the stream has not ended yet: iterate over it first")
        return self._finish()


class AsyncTextStream(AsyncIterator[str]):
    """The pieces of a `TextStream` for `async for`. A task that is cancelled ends the generation; a loop that is left
    by `break` does inside of `async with`.

    Args:
        stream: the pieces.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        try:
            piece = await self._stream.anext()
        except BaseException:  # cancelled, or the text has failed
            self._stream.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the generation here; `output` holds what has come so far."""
        self._stream.close()

    @property
    def output(self) -> GenerationOutput:
        """The finished generation. Raises RuntimeError while text is still to come."""
        return self._stream.output
