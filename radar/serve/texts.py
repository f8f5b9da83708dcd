"""One text of a request, from its first round to its last, in pieces; and several of them as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from radar.generation.detokenize import Detokenizer
from radar.generation.sequence import Sequence as Rounds
from radar.metrics import Round
from radar.serve.ahead import rounds_of
from radar.serve.logprobs import LogprobRecorder, TokenLogprob
from radar.serve.models import ServedModel
from radar.serve.stops import StopFilter

__all__ = ["Piece", "ServedText", "merged"]


@dataclass
class Piece:
    """What a round adds to the output.

    Attributes:
        text: that is certain now; may be empty.
        logprobs: of the round's tokens, where they were asked for.
        finish_reason: "stop" or "length" in the last piece.
        round: figures of the round: its number (0 is the prompt's pass), tokens, accepted drafts, draft calls.
    """

    text: str
    logprobs: list[TokenLogprob]
    finish_reason: str | None
    round: dict[str, int] = field(default_factory=dict)


class ServedText:
    """A text and what is known of it for its usage, log and metrics.

    It is read here as fast as its client takes it, and made whether or not it is read: at most `limit` tokens wait.

    Args:
        model: decodes it.
        rounds: of the text.
        stops: strings that end it.
        recorder: of log-probabilities; None: not asked for.

    Attributes:
        num_tokens, num_prompt_tokens, num_reused_tokens: of output and prompt.
        num_accepted, num_rejected: draft tokens that the target verified.
        finish_reason: why it ended; None: it has not.
        began, first, ended: by `time.perf_counter`: opened, first token read, last one read.
        waited: seconds until it had a row.
    """

    def __init__(
        self, model: ServedModel, rounds: Rounds, stops: Sequence[str], recorder: LogprobRecorder | None
    ) -> None:
        self._model, self._rounds, self._recorder = model, rounds, recorder
        self._text, self._stops = Detokenizer(model.decoder.tokenizer), StopFilter(stops)
        self.num_prompt_tokens = len(rounds.request.input_ids)
        self.num_tokens = self.num_reused_tokens = self.num_accepted = self.num_rejected = self._number = 0
        self.finish_reason: str | None = None
        self.began = time.perf_counter()
        self.first: float | None = None
        self.ended: float | None = None
        self.waited = 0.0

    def close(self) -> None:
        """Its row is free within a round."""
        self._rounds.close()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """One a round."""
        rounds = rounds_of(self._rounds, self._model.turn)
        try:
            async for item in rounds:
                yield self._take(item)
                if self.finish_reason is not None:
                    return
        finally:
            self.close()
            await rounds.aclose()

    def _take(self, item: Round) -> Piece:
        now = time.perf_counter()
        if self.first is None:
            self.first, self.waited = now, max(0.0, now - self.began - self._rounds.seconds)
        begin, out = self.num_tokens, ""
        for token in item.tokens:  # one by one, so that a text ends at one token whatever its rounds were
            self.num_tokens += 1
            out += self._stops.push(self._text.push([token]))
            if self._stops.found:
                break
        if not self._stops.found and item.finish_reason is not None:
            out += self._stops.push(self._text.finish()) + self._stops.finish()
        self.finish_reason = "stop" if self._stops.found else item.finish_reason
        if self.finish_reason is not None:
            self.ended = now
        accepted = min(item.accept_length, len(item.tokens))
        self.num_accepted += accepted
        self.num_rejected += max(0, item.num_draft_tokens - accepted)
        self.num_reused_tokens += item.num_reused_tokens
        figures = {
            "round": self._number,
            "tokens": self.num_tokens - begin,
            "accepted": accepted,
            "draft_calls": item.num_draft_calls,
            "draft_tokens": item.num_draft_tokens,
        }
        self._number += 1
        found = [] if self._recorder is None else self._recorder.found[begin : self.num_tokens]
        return Piece(out, found, self.finish_reason, figures)


async def merged(texts: Sequence[ServedText]) -> AsyncIterator[tuple[int, Piece]]:
    """Pieces of all texts as they come, with the text's number. Left early, it ends all of them."""
    iterators = [text.pieces() for text in texts]
    waiting = {asyncio.ensure_future(_next(one)): number for number, one in enumerate(iterators)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                piece = task.result()
                if piece is not None:
                    waiting[asyncio.ensure_future(_next(iterators[number]))] = number
                    yield number, piece
    finally:
        for text in texts:
            text.close()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for one in iterators:
            await one.aclose()


async def _next(pieces: AsyncIterator[Piece]) -> Piece | None:
    """None: there is none left."""
    found: Any = await anext(pieces, None)
    return None if found is None else found
