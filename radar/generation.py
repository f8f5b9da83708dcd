"""What every decoder offers on top of its rounds: `rounds` -> `stream` -> `generate`, text or ids in."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radar.metrics import DecodeMetrics, Round, summarize
from radar.sampling import GREEDY, SamplingParams

__all__ = ["Decoder", "GenerationOutput", "Prompt", "TextStream", "end_token_ids"]

Prompt = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class GenerationOutput:
    """A finished generation.

    Attributes:
        token_ids: the new tokens, an end token included if one was reached.
        text: their text without special tokens; None without a tokenizer.
        metrics: what it took.
        finish_reason: "stop" at an end token, "length" at the limit.
    """

    token_ids: list[int]
    text: str | None
    metrics: DecodeMetrics
    finish_reason: str


class Decoder(ABC):
    """Text and token limits around `_start` and `_round`; a subclass says how tokens come about.

    One generation runs at a time: starting another one ends the stream of the one before with an error.

    Args:
        tokenizer: a transformers tokenizer, or None for ids only.
        eos_token_ids: ids that end a generation.
        max_length: tokens that the cache holds, prompt and output together.
        vocab_size: ids that the target knows.
    """

    engine_name = ""

    def __init__(self, *, tokenizer: Any, eos_token_ids: Sequence[int], max_length: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_length = max_length
        self.vocab_size = vocab_size
        self._generation = 0

    @abstractmethod
    def _start(self, input_ids: list[int], sampling: SamplingParams) -> Round:
        """Take a prompt and return its first token."""

    @abstractmethod
    def _round(self) -> Round:
        """The next tokens."""

    @abstractmethod
    def _ahead(self) -> None:
        """Start on the next round, if the decoder can work while the last one's tokens are dealt with."""

    def rounds(
        self, prompt: Prompt, *, max_new_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Iterator[Round]:
        """Generate round by round.

        Args:
            prompt: text, token ids, or a tensor of ids [P] or [1, P].
            max_new_tokens: exact limit of the output; None: as many as the cache holds.
            sampling: how to choose tokens; None: greedy. For one seed every decoder, tree and policy gives one text.

        Yields:
            First the prompt's pass with one token, then a `Round` each, cut at an end token or the limit.

        Raises:
            ValueError: before any work, if the prompt is empty, too long, or holds ids that the target does not know,
                or if the limit is not positive or does not fit.
        """
        input_ids = self.encode(prompt)
        limit = self._limit(len(input_ids), max_new_tokens)
        self._generation += 1
        return self._run(input_ids, limit, sampling or GREEDY, self._generation)

    def stream(
        self, prompt: Prompt, *, max_new_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> TextStream:
        """Generate and hand out text as it becomes certain; see `rounds` for the arguments and errors."""
        if self.tokenizer is None:
            raise ValueError("stream needs a tokenizer; pass tokenizer= to the decoder, or use rounds for token ids")
        return TextStream(self, self.rounds(prompt, max_new_tokens=max_new_tokens, sampling=sampling))

    def generate(
        self, prompt: Prompt, *, max_new_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> GenerationOutput:
        """Generate to the end; see `rounds` for the arguments and errors."""
        started = time.perf_counter()
        rounds = list(self.rounds(prompt, max_new_tokens=max_new_tokens, sampling=sampling))
        return self._output(rounds, time.perf_counter() - started)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Text is tokenized with the tokenizer's special tokens, no chat template."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("a text prompt needs a tokenizer; pass tokenizer= to the decoder, or token ids")
            ids = list(self.tokenizer(prompt)["input_ids"]) if prompt else []
        elif isinstance(prompt, Tensor):
            if prompt.dim() == 2 and prompt.shape[0] != 1:
                raise ValueError(f"one prompt at a time: expected ids of shape [P] or [1, P], got {list(prompt.shape)}")
            if prompt.dim() not in (1, 2) or prompt.is_floating_point():
                raise ValueError(
                    f"prompt ids must be integers of shape [P] or [1, P], got {prompt.dtype} {list(prompt.shape)}"
                )
            ids = prompt.flatten().tolist()
        else:
            ids = list(prompt)
        if not ids:
            raise ValueError("the prompt is empty: give at least one token")
        wrong = [token for token in ids if isinstance(token, bool) or not isinstance(token, int)]
        wrong = wrong or [token for token in ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise ValueError(f"prompt ids must be integers from 0 to {self.vocab_size - 1}, got {wrong[0]!r}")
        return ids

    def _limit(self, prompt_length: int, max_new_tokens: int | None) -> int:
        room = self.max_length - prompt_length
        if room < 1:
            raise ValueError(
                f"the prompt has {prompt_length} tokens and the cache holds max_length={self.max_length}, prompt and "
                "output together: shorten the prompt or make the decoder with a larger max_length"
            )
        if max_new_tokens is None:
            return room
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a positive integer, got {max_new_tokens!r}")
        if max_new_tokens > room:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} after {prompt_length} prompt tokens does not fit into "
                f"max_length={self.max_length}: at most {room} fit"
            )
        return max_new_tokens

    def _run(self, input_ids: list[int], limit: int, sampling: SamplingParams, generation: int) -> Iterator[Round]:
        step: Callable[[], Round] = functools.partial(self._start, input_ids, sampling)
        while True:
            if generation != self._generation:
                raise RuntimeError("this generation ended because another one was started on the same decoder")
            with torch.inference_mode():
                item = step()
            item.tokens = self._cut(item.tokens, limit)
            limit -= len(item.tokens)
            ended = limit <= 0 or item.tokens[-1] in self.eos_token_ids
            if not ended:
                with torch.inference_mode():
                    self._ahead()
            yield item
            if ended:
                return
            step = self._round

    def _cut(self, tokens: list[int], limit: int) -> list[int]:
        for index, token in enumerate(tokens[:limit]):
            if token in self.eos_token_ids:
                return tokens[: index + 1]
        return tokens[:limit]

    def _output(self, rounds: list[Round], seconds: float) -> GenerationOutput:
        token_ids = [token for item in rounds for token in item.tokens]
        text = None if self.tokenizer is None else self.tokenizer.decode(token_ids, skip_special_tokens=True)
        ended = bool(token_ids) and token_ids[-1] in self.eos_token_ids
        metrics = summarize(rounds, seconds, self.engine_name)
        return GenerationOutput(token_ids, text, metrics, "stop" if ended else "length")


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: the model's generation config, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    if ids is None:
        return []
    return [int(ids)] if isinstance(ids, int) else [int(token) for token in ids]


class TextStream(Iterator[str]):
    """Pieces of text; their concatenation is the output's text. `output` is there once the stream has ended.

    Characters that span several tokens are held back until they are whole.
    """

    def __init__(self, decoder: Decoder, rounds: Iterator[Round]) -> None:
        self._decoder = decoder
        self._source = rounds
        self._rounds: list[Round] = []
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text is out
        self._anchor = 0  # decode from here, so that a piece keeps the spacing that its context gives it
        self._seconds = 0.0
        self._ended = False

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while not self._ended:
            started = time.perf_counter()
            item = next(self._source, None)
            self._seconds += time.perf_counter() - started
            if item is None:
                self._ended = True
            else:
                self._rounds.append(item)
                self._ids.extend(item.tokens)
            piece = self._advance()
            if piece:
                return piece
        raise StopIteration

    def _advance(self) -> str:
        decode = self._decoder.tokenizer.decode
        before: str = decode(self._ids[self._anchor : self._shown], skip_special_tokens=True)
        after: str = decode(self._ids[self._anchor :], skip_special_tokens=True)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not self._ended):
            return ""
        self._anchor, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    @property
    def output(self) -> GenerationOutput:
        """The finished generation. Raises RuntimeError while text is still to come."""
        if not self._ended:
            raise RuntimeError("the stream has not ended yet: iterate over it first")
        return self._decoder._output(self._rounds, self._seconds)
