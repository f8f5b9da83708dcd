"""Texts decoded in full rounds: the candidates of every round, and what the target makes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import SamplingParams
from radar.decoder import RadarDecoder
from radar.draft.drafter import Eagle3Drafter
from radar.engine.admission import Admission
from radar.engine.capture import capture, capture_each, on_stream
from radar.errors import UsageError
from radar.generation.request import Request
from radar.target.model import TargetModel
from radar.train.acceptance import Candidates
from radar.train.full_round import FullRound

__all__ = ["Drafted", "FullRounds", "Job", "in_order"]


class Drafted(NamedTuple):
    """One round.

    Attributes:
        tokens: certain after it.
        tree: its candidates, of one row; None for the prompt's pass.
        probabilities: [1, C] float32, the target's probability of every candidate after its parent's path, at the
            temperature of the sampling; None at temperature 0.
    """

    tokens: list[int]
    tree: Candidates | None = None
    probabilities: Tensor | None = None


class FullRounds:
    """Full rounds of texts, with caches of their own; on a GPU a round is one CUDA graph, on a stream of their own.

    Threads may run several of them side by side, one text each.

    Args:
        decoder: whose model, head and tree it is.
        temperature: of the sampling; 0 is greedy.
        every_token: let a round begin at every token of the text, not where the round before ended.
    """

    def __init__(self, decoder: RadarDecoder, temperature: float, *, every_token: bool = False) -> None:
        source, tree, draft = decoder.engine.target, decoder.tree, decoder.draft
        self.decoder, self.temperature, self.every_token = decoder, temperature, every_token
        self.target = TargetModel(
            decoder.model,
            max_length=decoder.max_length,
            max_rows=max(FullRound.num_rows(tree), source.max_rows),
            tap_layers=source.tap_layers,
        )
        embedding = source.embed_tokens if draft.embed_tokens is None else draft.embed_tokens
        self.drafter = Eagle3Drafter(draft, embedding, tree, max_length=decoder.max_length, max_rows=source.max_rows)
        self._stream: torch.cuda.Stream | None = None
        with torch.inference_mode():
            self.round = FullRound(self.target, self.drafter, tree, temperature=temperature, one_token=every_token)
            self._admission = Admission(self.target, self.drafter, self.round.sampler)
            self._run: Callable[[], object] = self.round.run
            if self.target.device.type == "cuda":
                self._stream, prefill = torch.cuda.Stream(self.target.device), self._admission.prefill
                self._admission.chunks = capture_each(prefill.chunk, prefill.sizes, self._stream)
                on_stream(self._stream, self.round.run)
                self._run = capture(self.round.run, self._stream).replay

    def _here(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    def of(self, prompt: Sequence[int], limit: int, *, seed: int) -> Iterator[Drafted]:
        """The rounds of one text, until an end token or `limit` tokens; the text is what decoding with `seed` gives.

        Raises ValueError where prompt and limit do not fit.
        """
        decoder = self.decoder
        ids, ends = decoder.encode(prompt), decoder.eos_token_ids
        if len(ids) + limit > decoder.max_length:
            raise UsageError(
                f"a prompt of {len(ids)} tokens with {limit} behind it does not fit: the cache holds "
                f"max_length={decoder.max_length}: shorten it, lower the limit, or make the decoder with a larger one"
            )
        made = self._begin(Request(ids, limit, SamplingParams(temperature=self.temperature, seed=seed), ends))
        yield made
        left, length = limit - 1, len(ids)
        while left > 0 and made.tokens[-1] not in ends:
            made = self._next(length)
            length += len(made.tokens)
            made = made._replace(tokens=_cut(made.tokens, left, ends))
            left -= len(made.tokens)
            yield made

    @torch.inference_mode()
    def _begin(self, request: Request) -> Drafted:
        """The prompt's pass."""
        with self._here():
            first = self._admission.admit(request)
            self.round.load(self._admission.token, self._admission.prefill.taps)
            return Drafted(first.tokens)

    @torch.inference_mode()
    def _next(self, length: int) -> Drafted:
        """The round behind `length` committed tokens."""
        with self._here():
            self.target.cache.set_window(length + FullRound.num_rows(self.decoder.tree))
            self.drafter.cache.set_window(length + self.drafter.num_scratch_rows)
            self._run()
            _, accepted, *tokens = self.round.result[0].tolist()
            probabilities = self.round.probabilities.cpu() if self.temperature > 0 else None
            return Drafted(tokens[: accepted + 1], Candidates.of(self.drafter.tree), probabilities)


def _cut(tokens: list[int], limit: int, ends: frozenset[int]) -> list[int]:
    kept = tokens[:limit]
    first = next((i for i, token in enumerate(kept) if token in ends), len(kept))
    return kept[: first + 1]


class Job(NamedTuple):
    """One text to record. `limit`: output tokens, for which the cache has room."""

    number: int
    prompt: Sequence[int]
    limit: int
    seed: int


def in_order(sources: Sequence[FullRounds], texts: Iterable[Job]) -> Generator[tuple[Job, list[Drafted]]]:
    """The texts' rounds, one after the other, while as many threads as sources wait for one GPU."""
    free: SimpleQueue[FullRounds] = SimpleQueue()
    for source in sources:
        free.put(source)

    def drafted(job: Job) -> list[Drafted]:
        source = free.get()
        try:
            return list(source.of(job.prompt, job.limit, seed=job.seed))
        finally:
            free.put(source)

    if len(sources) == 1:  # in this thread, where Ctrl-C ends a text at once
        yield from ((job, drafted(job)) for job in texts)
        return
    waiting: deque[tuple[Job, Future[list[Drafted]]]] = deque()
    with ThreadPoolExecutor(max(1, len(sources))) as pool:
        try:
            for job in texts:
                waiting.append((job, pool.submit(drafted, job)))
                if len(waiting) > 2 * len(sources):  # more would only wait in memory
                    done, future = waiting.popleft()
                    yield done, future.result()
            yield from ((done, future.result()) for done, future in waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of an interruption; texts in work are waited for
