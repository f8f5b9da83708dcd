"""Sequence: one request, from its prompt to its last token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from radar.errors import NumericalError, UsageError
from radar.generation.detokenize import text_of
from radar.generation.request import Request
from radar.generation.stops import TextEnd
from radar.metrics import DecodeMetrics, Round, TokenLogprob, summarize
from radar.target.adapters import ActiveAdapters

__all__ = ["GenerationOutput", "Sequence"]


@dataclass(frozen=True)
class GenerationOutput:
    """A finished generation.

    Attributes:
        token_ids: the new tokens, an end token included if one was reached.
        text: their text without special tokens; None without a tokenizer.
        metrics: what it took.
        finish_reason: "stop" at an end token, stop string or criterion, "length" at the limit, "cancelled" if it was
            closed before, "error" if a processor, a criterion or the model failed.
        logprobs: of every new token, where they were asked for.
    """

    token_ids: list[int]
    text: str | None
    metrics: DecodeMetrics
    finish_reason: str
    logprobs: list[TokenLogprob] | None = None


class Sequence(Iterator[Round]):
    """The rounds of one text, made as they are asked for, or by the engine's thread if the decoder has several rows:
    first the prompt's pass with one token, then a `Round` each, cut at an end of the text or the limit.

    It may be read from one thread after the other, and closed from any thread at any time, also while a round is under
    way elsewhere: that one ends first, and is the last.

    Args:
        request: what to decode.
        step: makes the sequence's next round, or waits for it; None: it was closed meanwhile.
        release: told that the sequence has been closed.
        device: of the model.
        ready: comes back when `step` does not wait; None: `step` is where the work is done.
        hold: told that nobody looks at a round before the text has ended.

    Attributes:
        request: the request.
        token: names the sequence, where the engine keeps whose text it holds.
        ids: prompt and output so far.
        rounds: those made so far.
        finish_reason: why the text has ended; None: it has not.
        seconds: spent in rounds; where texts share them, since a row was free for it.
        adapters: that its first token was made with; None: it has none yet, or the engine's thread sees to that.
    """

    def __init__(
        self,
        request: Request,
        step: Callable[[Sequence], Round | None],
        release: Callable[[object], None],
        device: torch.device,
        *,
        ready: Callable[[], Awaitable[None]] | None = None,
        hold: Callable[[], None] | None = None,
    ) -> None:
        self._cancelled = threading.Event()
        self._step, self._release, self._ready, self._hold = step, release, ready, hold
        self.token = object()
        self.ids = list(request.input_ids)
        self._end = TextEnd(self.ids, request.limit, request.end_token_ids, request.criteria, device)
        if request.processing is not None:
            request = replace(request, processing=replace(request.processing, ends=self._end.ends))
        self.request = request
        self.rounds: list[Round] = []
        self.finish_reason: str | None = None
        self.seconds = 0.0
        self.adapters: ActiveAdapters | None = None

    def __reduce__(self) -> NoReturn:
        """A copy that goes would end the original."""
        raise UsageError("a text that is being decoded cannot be copied or pickled: take its token_ids or its output")

    def __iter__(self) -> Sequence:
        return self

    def __next__(self) -> Round:
        item = None if self.has_ended else self._step(self)
        if item is None:
            raise StopIteration
        return item

    async def anext(self) -> Round | None:
        """The next round, in an event loop that goes on meanwhile; None: no round is to come."""
        if self._ready is None:
            return await asyncio.to_thread(next, self, None)
        if not self.has_ended:
            await self._ready()
        return next(self, None)

    def read(self) -> None:
        """Decode it to its end. Where an engine's thread does so, rounds are here when all are: closed meanwhile, the
        sequence keeps those that it had before."""
        if self._hold is not None:
            self._hold()
        for _ in self:
            pass

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "token"):
            self.close()

    @property
    def has_ended(self) -> bool:
        """Whether no round is to come."""
        return self.finish_reason is not None or self._cancelled.is_set()

    @property
    def token_ids(self) -> list[int]:
        """The output so far."""
        return self.ids[len(self.request.input_ids) :]

    def close(self) -> None:
        """End here; what has come so far stays."""
        if not self._cancelled.is_set():
            self._cancelled.set()
            self._release(self.token)

    def resumed(self) -> Request:
        """The rest of the request, for an engine that holds another text by now."""
        return replace(self.request, input_ids=list(self.ids)) if self.rounds else self.request

    def take(self, item: Round) -> None:
        """Add a round: keep its tokens up to the text's end, and say in its `finish_reason` why it ends.

        Raises NumericalError if the scores left no token, as no numbers or all forbidden. What came before stays.
        """
        logits, item.is_host_processed = item.logits, item.scores is not None
        if self.request.processing is None or not self.request.processing.keep:
            item.logits = item.scores = None
        count = 0
        while count < len(item.tokens) and item.finish_reason is None:
            if item.tokens[count] < 0:
                if count:
                    self._keep(item, count)
                raise NumericalError(self._why_no_token(None if logits is None else logits[count]))
            self.ids.append(item.tokens[count])
            item.finish_reason = self._end.reason(self.ids, None if item.scores is None else item.scores[count])
            count += 1
        self._keep(item, count)
        self.finish_reason = item.finish_reason

    def _keep(self, item: Round, count: int) -> None:
        """Add a round, as far as so many tokens."""
        item.tokens = item.tokens[:count]
        item.logprobs = None if item.logprobs is None else item.logprobs[:count]
        if item.scores is not None and item.logits is not None:
            item.logits, item.scores = item.logits[:count], item.scores[:count]
        self.rounds.append(item)

    def _why_no_token(self, logits: Tensor | None) -> str:
        """`logits` [V]: the target's own, known where processors follow them."""
        where = f"behind token {len(self.ids)} there is no next token"
        if logits is not None and bool((logits < torch.inf).all() and logits.isfinite().any()):
            return (
                f"{where}: the logits processors leave no token a finite score, or make one NaN (or +inf, where one "
                "samples). Look at logits_processor=, prefix_allowed_tokens_fn= and the tokens that are forbidden"
            )
        return (
            f"{where}: the target's scores hold NaN or no finite number. Look for a weight that is no number, or load "
            "the model in a wider type (dtype=torch.bfloat16 or float32)"
            + (", or logit_bias or suppress_tokens forbid every token" if self.request.sampling.logit_bias else "")
        )

    def output(self, tokenizer: Any, engine: str, seconds: float | None = None) -> GenerationOutput:
        """What has come, its text by `tokenizer`; `seconds` of wall time, None: those spent in rounds."""
        ids = self.token_ids
        text = None if tokenizer is None else text_of(ids, tokenizer)
        metrics = summarize(self.rounds, self.seconds if seconds is None else seconds, engine)
        watched = (
            None if self.request.logprobs is None else [one for item in self.rounds for one in item.logprobs or []]
        )
        return GenerationOutput(ids, text, metrics, self.finish_reason or "cancelled", watched)
