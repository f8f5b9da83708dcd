"""Rounds of a text for an event loop, made whether or not they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from radar.generation.sequence import Sequence
from radar.metrics import Round

__all__ = ["rounds_of"]


async def rounds_of(sequence: Sequence, turn: asyncio.Semaphore | None) -> AsyncGenerator[Round, None]:
    """The rounds, in order. Left early, none follows.

    A decoder of several rows makes them ahead by itself. One of one row makes them as they are asked for, and would go
    from text to text at the price of a prompt's pass each: there a text has its turn until it ends, and is read ahead,
    so that a client that reads slowly holds up nobody.

    Args:
        sequence: the text.
        turn: of the one row; None: there are several.
    """
    if turn is None:
        while (item := await sequence.anext()) is not None:
            yield item
        return
    made: asyncio.Queue[Round | Exception | None] = asyncio.Queue()
    making = asyncio.ensure_future(_make(sequence, turn, made))
    try:
        while (found := await made.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)


async def _make(sequence: Sequence, turn: asyncio.Semaphore, made: asyncio.Queue[Round | Exception | None]) -> None:
    try:
        async with turn:
            while (item := await sequence.anext()) is not None:
                made.put_nowait(item)
        made.put_nowait(None)
    except Exception as error:  # who reads gets it
        made.put_nowait(error)
