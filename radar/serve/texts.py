"""One text of a request, from its first round to its last, in pieces."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from radar.generation.detokenize import Detokenizer
from radar.generation.sequence import Sequence as Rounds
from radar.metrics import Round, TokenLogprob
from radar.serve.models import ServedModel
from radar.serve.stops import StopFilter

__all__ = ["Piece", "ServedText"]


@dataclass
class Piece:
    """What a round adds to the output.

    Attributes:
        text: that is certain now; may be empty.
        logprobs: of the round's tokens, where they were asked for.
        offsets: characters of the text before each of those.
        finish_reason: "stop" or "length" in the last piece.
        round: figures of the round: its number (0 is the prompt's pass), tokens, accepted drafts, draft calls.
    """

    text: str
    logprobs: list[TokenLogprob]
    finish_reason: str | None
    offsets: list[int] = field(default_factory=list)
    round: dict[str, int] = field(default_factory=dict)


class ServedText:
    """A text and what is known of it for its usage, log and metrics.

    Args:
        model: decodes it.
        rounds: of the text.
        stops: strings that end it.

    Attributes:
        num_tokens, num_prompt_tokens, num_reused_tokens: of output and prompt.
        num_accepted, num_rejected: draft tokens that the target verified.
        finish_reason: why it ended; None: it has not.
        began, first, ended: by `time.perf_counter`: opened, first token made, last one made.
        waited: seconds until it had a row.
    """

    def __init__(self, model: ServedModel, rounds: Rounds, stops: Sequence[str]) -> None:
        self._model, self._rounds = model, rounds
        self._text, self._stops = Detokenizer(model.decoder.tokenizer), StopFilter(stops)
        self._ends_at_strings = bool(stops)
        self.num_prompt_tokens = len(rounds.request.input_ids)
        self.num_tokens = self.num_reused_tokens = self.num_accepted = self.num_rejected = self._number = 0
        self._length = 0  # characters that the tokens so far have made
        self.finish_reason: str | None = None
        self.began = time.perf_counter()
        self.first: float | None = None
        self.ended: float | None = None
        self.waited = 0.0

    def close(self) -> None:
        """Its row is free within a round."""
        self._rounds.close()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """One a round.

        A decoder of one row makes rounds as they are asked for, and would go from text to text at the price of a
        prompt's pass each: there a text has its turn until it ends.
        """
        try:
            async with self._model.turn or nullcontext():
                while self.finish_reason is None and (item := await self._rounds.anext()) is not None:
                    yield self._take(item)
        finally:
            self.close()

    def _take(self, item: Round) -> Piece:
        now = time.perf_counter()
        if self.first is None:
            self.first, self.waited = now, max(0.0, now - self.began - self._rounds.seconds)
        begin, out, offsets = self.num_tokens, "", []
        # one by one, so that a text ends at one token whatever its rounds were; where none can, all at once
        parts = [[token] for token in item.tokens] if self._ends_at_strings or item.logprobs else [item.tokens]
        for tokens in parts:
            self.num_tokens += len(tokens)
            offsets.append(self._length)
            said = self._text.push(tokens)
            self._length += len(said)
            out += self._stops.push(said)
            if self._stops.found:
                break
        if not self._stops.found and item.finish_reason is not None:
            out += self._stops.push(self._text.finish()) + self._stops.finish()
        self.finish_reason = "stop" if self._stops.found else item.finish_reason
        if self.finish_reason is not None:
            self.ended = now
        accepted = min(item.accept_length, self.num_tokens - begin)  # none behind a stop string
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
        found = (item.logprobs or [])[: self.num_tokens - begin]
        return Piece(out, found, self.finish_reason, offsets, figures)
