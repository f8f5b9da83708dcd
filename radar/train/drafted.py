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
from radar.engine.capture import capture, capture_each, on_stream
from radar.engine.prefill import Prefill
from radar.errors import UsageError
from radar.target.model import TargetModel
from radar.train.acceptance import Candidates
from radar.train.full_round import FullRound, entropy

__all__ = ["Drafted", "FullRounds", "Job", "in_order"]


class Drafted(NamedTuple):
    """One round.

    Attributes:
        tokens: certain after it.
        tree: its candidates, of one row; None for the prompt's pass.
        entropy: nats, of the target's distribution (at temperature 1) behind the last of the tokens.
        probabilities: [1, C] float32, the target's probability of every candidate after its parent's path, at the
            temperature of the sampling; None at temperature 0.
    """

    tokens: list[int]
    tree: Candidates | None
    entropy: float
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
        source, tree, draft = decoder.engine, decoder.tree, decoder.draft
        self.decoder, self.temperature, self.every_token = decoder, temperature, every_token
        prompt_rows = source.target.max_rows
        self.target = TargetModel(
            decoder.model,
            max_length=decoder.max_length,
            max_rows=max(FullRound.num_rows(tree), prompt_rows),
            tap_layers=source.target.tap_layers,
        )
        self.drafter = Eagle3Drafter(
            draft,
            self.target.embed_tokens if draft.embed_tokens is None else draft.embed_tokens,
            tree,
            max_length=decoder.max_length,
            max_rows=prompt_rows,
        )
        self._prefill = Prefill(self.target, self.drafter)
        self._chunks: dict[int, Callable[[], object]] | None = None
        self._stream: torch.cuda.Stream | None = None
        with torch.inference_mode():
            self.round = FullRound(self.target, self.drafter, tree, temperature=temperature, one_token=every_token)
            self._run: Callable[[], object] = self._work
            if self.target.device.type == "cuda":
                self._stream = stream = torch.cuda.Stream(self.target.device)
                self._chunks = capture_each(self._prefill.chunk, self._prefill.sizes, stream)
                on_stream(stream, self._work)
                self._run = capture(self._work, stream).replay

    def _work(self) -> None:
        self._result = self.round.run()

    def _here(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    def of(self, prompt: Sequence[int], limit: int, *, seed: int) -> Iterator[Drafted]:
        """The rounds of one text, until an end token or `limit` tokens; the text is what decoding with `seed` gives.

        Raises ValueError where prompt and limit do not fit.
        """
        decoder = self.decoder
        ids = decoder.encode(prompt)
        if len(ids) + limit > decoder.max_length:
            raise UsageError(
                f"a prompt of {len(ids)} tokens with {limit} behind it does not fit: the cache holds "
                f"max_length={decoder.max_length}: shorten it, lower the limit, or make the decoder with a larger one"
            )
        first = self._begin(ids, seed)
        yield first
        left, root, length = limit - 1, first.tokens[0], len(ids)
        while left > 0 and root not in decoder.eos_token_ids:
            made = self._next(length)
            length += len(made.tokens)
            tokens = _cut(made.tokens, left, decoder.eos_token_ids)
            left, root = left - len(tokens), tokens[-1]
            yield made._replace(tokens=tokens)

    @torch.inference_mode()
    def _begin(self, ids: list[int], seed: int) -> Drafted:
        """The prompt's pass."""
        steps = self.round
        with self._here():
            input_ids = torch.tensor([ids], device=self.target.device)
            steps.sampler.set(SamplingParams(temperature=self.temperature, seed=seed))
            steps.sampler.start(input_ids)
            self._prefill.run(input_ids, self._chunks)
            token = steps.sampler.sample(self._prefill.logits[:, None], self.target.cache.length[:, None])
            steps.sampler.commit(token, torch.ones_like(token[:, 0]))
            steps.load(token, self._prefill.taps)
            return Drafted([int(steps.root)], None, float(entropy(self._prefill.logits)))

    @torch.inference_mode()
    def _next(self, length: int) -> Drafted:
        """The round behind `length` committed tokens."""
        steps, tree = self.round, self.decoder.tree
        with self._here():
            self.target.cache.set_window(length + FullRound.num_rows(tree))
            self.drafter.cache.set_window(length + tree.max_accepted + tree.num_draft_columns)
            self._run()
            _, accepted, *tokens = self._result[0].tolist()
            probabilities = steps.probabilities.cpu() if self.temperature > 0 else None
            candidates = Candidates.of(self.drafter.tree)
            return Drafted(tokens[: accepted + 1], candidates, float(steps.entropies), probabilities)


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
