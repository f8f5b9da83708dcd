"""Pieces of a request's texts for an event loop, made whether or not they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from radar.serve.texts import Piece, ServedText

__all__ = ["merged"]

QUIET = 15.0  # seconds without a piece, after which who waits for one is told: proxies drop what is silent for a minute

Made = asyncio.Queue[tuple[int, Piece | Exception | None]]


async def merged(
    texts: Sequence[ServedText], ended: Callable[[], None]
) -> AsyncGenerator[tuple[int, Piece] | None, None]:
    """Pieces of all texts as they come, with the text's number. Left early, it ends all of them.

    They are made as fast as the decoder does, so that a client that reads slowly holds up nobody; what waits is the
    rest of its texts at most.

    Args:
        texts: of the request.
        ended: told of each text that has come to its end.

    Yields:
        Pieces; None where none came for `QUIET` seconds.
    """
    made: Made = asyncio.Queue()
    tasks = [asyncio.ensure_future(_make(number, text, made, ended)) for number, text in enumerate(texts)]
    left = len(tasks)
    try:
        while left:
            try:
                async with asyncio.timeout(QUIET):
                    number, found = await made.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield number, found
    finally:
        for text in texts:
            text.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _make(number: int, text: ServedText, made: Made, ended: Callable[[], None]) -> None:
    pieces = text.pieces()
    try:
        async for piece in pieces:
            made.put_nowait((number, piece))
        if text.finish_reason is not None:
            ended()
        made.put_nowait((number, None))
    except Exception as error:  # who reads gets it
        made.put_nowait((number, error))
    finally:
        await pieces.aclose()
