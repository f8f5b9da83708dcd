"""What every decoder offers on top of its rounds: `rounds` -> `stream` -> `generate`, text or ids in."""

from __future__ import annotations

import functools
import inspect
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from radar.errors import UsageError
from radar.generation.hf import generate_ids
from radar.generation.prompt import Prompt, check_tokenizer, encode_prompt
from radar.generation.request import GenerateOptions, Request, make_request
from radar.generation.stops import TextEnd
from radar.generation.text import TextStream
from radar.metrics import DecodeMetrics, Round, Tally, summarize

__all__ = ["Decoder", "GenerationOutput", "Prompt", "TextStream", "end_token_ids"]


@dataclass(frozen=True)
class GenerationOutput:
    """A finished generation.

    Attributes:
        token_ids: the new tokens, an end token included if one was reached.
        text: their text without special tokens; None without a tokenizer.
        metrics: what it took.
        finish_reason: "stop" at an end token, stop string or criterion, "length" at the limit, "cancelled" if the
            stream was closed before.
    """

    token_ids: list[int]
    text: str | None
    metrics: DecodeMetrics
    finish_reason: str


class Decoder(ABC):
    """Text and token limits around `_start` and `_round`; a subclass says how tokens come about.

    One generation runs at a time: starting another one ends the stream of the one before with an error, and is refused
    while that one belongs to another thread.

    Args:
        model: the transformers model that decodes.
        tokenizer: a transformers tokenizer, or None for ids only.
        eos_token_ids: ids that end a generation.
        max_length: tokens that the cache holds, prompt and output together.
        vocab_size: ids that the target knows.
    """

    engine_name = ""

    def __init__(
        self, model: Any, *, tokenizer: Any, eos_token_ids: Sequence[int], max_length: int, vocab_size: int
    ) -> None:
        check_tokenizer(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_length = max_length
        self.vocab_size = vocab_size
        self._generation = 0
        self._open: Callable[[], Generator[Round] | None] = lambda: None
        self._thread = 0  # that took the last step of the open generation
        self._opening = threading.Lock()
        self._tally = Tally()

    @abstractmethod
    def _start(self, request: Request) -> Round:
        """Take a prompt and return its first token."""

    @abstractmethod
    def _round(self) -> Round:
        """The next tokens."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of what belongs to the generation that ended: its processors and their scores."""

    @abstractmethod
    def _ahead(self) -> None:
        """Start on the next round, if the decoder can work while the last one's tokens are dealt with."""

    @property
    def metrics(self) -> DecodeMetrics:
        """The running total over every generation of this decoder, those that were cancelled included."""
        return self._tally.summary(self.engine_name)

    def rounds(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generator[Round]:
        """Generate round by round; for one seed every decoder, tree and policy gives one text.

        Args:
            prompt: text, token ids, a tensor of ids [P] or [1, P], or chat messages (dicts with "role" and "content"),
                which go through the tokenizer's chat template. A conversation goes on from what the caches hold of it.
            options: see `GenerateOptions`.

        Yields:
            First the prompt's pass with one token, then a `Round` each, cut at an end of the text or the limit.

        Raises:
            ValueError: before any work, if the prompt is empty, too long, or holds ids that the target does not know,
                if the limit is not positive or does not fit, or an option is wrong.
            RuntimeError: if a generation of another thread has not ended yet.
        """
        return self._open_generation(self._request(prompt, options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """Generate and hand out text as it becomes certain; see `rounds` for the arguments and errors."""
        if self.tokenizer is None:
            raise UsageError("stream needs a tokenizer; pass tokenizer= to the decoder, or use rounds for token ids")
        return TextStream(self.tokenizer, self.rounds(prompt, **options), self._output)

    def generate(self, prompt: Prompt, *, streamer: Any = None, **options: Unpack[GenerateOptions]) -> GenerationOutput:
        """Generate to the end; see `rounds` for the arguments and errors.

        Args:
            streamer: gets the prompt [1, P], then each token [1], by `put`, and `end` when there are no more, as
                transformers' streamers do.
        """
        request = self._request(prompt, options)
        started = time.perf_counter()
        rounds = self._collect(request, streamer)
        return self._output(rounds, time.perf_counter() - started)

    def generate_ids(self, inputs: Tensor | None = None, **arguments: Any) -> Any:
        """transformers' `model.generate`, decoded here: its arguments, defaults and results.

        Args:
            inputs: token ids [1, P].
            arguments: of transformers' `generate`, and `seed`; `radar.generation.hf.ARGUMENTS` lists what is supported.
                Without a seed the noise follows `torch.manual_seed`.

        Returns:
            Prompt and output [1, P + N], or with `return_dict_in_generate=True` a `RadarGenerateOutput`.

        Raises:
            ValueError: for an argument that cannot be honoured, by its name.
        """
        return generate_ids(self, inputs, arguments)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Text gets the tokenizer's special tokens, messages its chat template."""
        return encode_prompt(prompt, self.tokenizer, self.vocab_size).ids

    def _request(self, prompt: Prompt, options: GenerateOptions) -> Request:
        encoded = encode_prompt(prompt, self.tokenizer, self.vocab_size)
        return make_request(
            encoded.ids,
            options,
            tokenizer=self.tokenizer,
            end_token_ids=self.eos_token_ids,
            limit_of=self._limit,
            vocab_size=self.vocab_size,
            is_chat=encoded.is_chat,
        )

    def _limit(self, prompt_length: int, max_new_tokens: int | None) -> int:
        room = self.max_length - prompt_length
        if room < 1:
            raise UsageError(
                f"the prompt has {prompt_length} tokens and the cache holds max_length={self.max_length}, prompt and "
                "output together: shorten the prompt or make the decoder with a larger max_length"
            )
        if max_new_tokens is None:
            return room
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be a positive integer, got {max_new_tokens!r}")
        if max_new_tokens > room:
            raise UsageError(
                f"max_new_tokens={max_new_tokens} after {prompt_length} prompt tokens does not fit into "
                f"max_length={self.max_length}: at most {room} fit"
            )
        return max_new_tokens

    def _open_generation(self, request: Request) -> Generator[Round]:
        with self._opening:
            running, here = self._open(), threading.get_ident()
            foreign = (
                running is not None
                and inspect.getgeneratorstate(running) != inspect.GEN_CLOSED
                and self._thread != here
            )
            if foreign and any(thread.ident == self._thread for thread in threading.enumerate()):
                raise RuntimeError(
                    "this decoder is in the middle of a generation of another thread: end or close that one first, "
                    "put a lock around the decoder, or make a decoder for each thread"
                )
            self._generation += 1
            self._thread = here
            generation = self._run(request, self._generation)
            self._open = weakref.ref(generation)
        return generation

    def _run(self, request: Request, generation: int) -> Generator[Round]:
        text = list(request.input_ids)
        end = TextEnd(text, request.limit, request.end_token_ids, request.criteria, self.model.device)
        if request.processing is not None:
            request = replace(request, processing=replace(request.processing, ends=end.ends))
        step: Callable[[], Round] = functools.partial(self._start, request)
        try:
            while True:
                if generation != self._generation:
                    raise RuntimeError("this generation ended because another one was started on the same decoder")
                self._thread = threading.get_ident()  # a stream may be read from one thread after the other
                started = time.perf_counter()
                with torch.inference_mode():
                    item = step()
                    _cut(item, end, text)
                    if item.finish_reason is None:
                        self._ahead()
                self._tally.add(item)
                self._tally.num_generations += item.is_prefill
                self._tally.seconds += time.perf_counter() - started
                yield item
                if item.finish_reason is not None:
                    return
                step = self._round
        finally:
            if generation == self._generation:
                self._release()

    def _collect(self, request: Request, streamer: Any = None, *, put_prompt: bool = True) -> list[Round]:
        """Run a generation to its end, and feed a streamer of transformers' kind."""
        rounds = []
        if streamer is not None and put_prompt:
            streamer.put(torch.tensor([request.input_ids]))
        try:
            for item in self._open_generation(request):
                rounds.append(item)
                for token in item.tokens if streamer is not None else ():
                    streamer.put(torch.tensor([token]))
        finally:
            if streamer is not None:
                streamer.end()  # after an error too: a reader in another thread would wait for ever
        return rounds

    def _output(self, rounds: list[Round], seconds: float) -> GenerationOutput:
        token_ids = [token for item in rounds for token in item.tokens]
        text = None if self.tokenizer is None else self.tokenizer.decode(token_ids, skip_special_tokens=True)
        reason = rounds[-1].finish_reason if rounds else None
        return GenerationOutput(token_ids, text, summarize(rounds, seconds, self.engine_name), reason or "cancelled")


def _cut(item: Round, end: TextEnd, text: list[int]) -> None:
    """Keep a round's tokens up to the text's end, say in `finish_reason` why it ends, and add them to `text`."""
    count = 0
    while count < len(item.tokens) and item.finish_reason is None:
        text.append(item.tokens[count])
        item.finish_reason = end.reason(text, None if item.scores is None else item.scores[count])
        count += 1
    item.tokens = item.tokens[:count]
    if item.scores is not None and item.logits is not None:
        item.logits, item.scores = item.logits[:count], item.scores[:count]


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: the model's generation config, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    if ids is None:
        return []
    return [int(ids)] if isinstance(ids, int) else [int(token) for token in ids]
