"""What every decoder offers on top of its engine: `rounds` -> `stream` -> `generate`, text or ids in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar, Unpack, cast, overload

from torch import Tensor

from radar.engine.base import Engine
from radar.errors import BatchError, UsageError
from radar.generation.call import check_end_tokens, make_request
from radar.generation.engine_thread import EngineThread
from radar.generation.follower import Follower, shared_recipe
from radar.generation.generate_batch import RequestOutput, generate_batch
from radar.generation.hf import IdsCall, call_of_ids
from radar.generation.kept import Kept, Recipe
from radar.generation.many import Prompts, are_many, decode_all, seeded
from radar.generation.options import GenerateOptions, check_options
from radar.generation.prompt import Prompt, check_tokenizer, encode_prompt
from radar.generation.request import Context, Request
from radar.generation.sequence import GenerationOutput, Sequence
from radar.generation.stops import end_token_ids
from radar.generation.streamers import ended, feed, release
from radar.generation.text import AsyncTextStream, TextStream
from radar.generation.turns import RoundMaker, Turns
from radar.metrics import DecodeMetrics
from radar.target.checks import vocabulary_size
from radar.target.ranks import ranks_of

__all__ = ["Decoder", "Prompt", "check_rows"]


E = TypeVar("E", bound=Engine)


class Decoder(Generic[E]):
    """Requests in, texts out, from any thread.

    With one row texts take turns: `generate` waits for its turn; streams and rounds take turns round by round, at the
    price of a prompt's pass at every change. With several, texts share rounds, and a thread makes them; see
    `EngineThread`.

    Args:
        model: the transformers model that decodes.
        recipe: makes the engine for the model as it is, a `BatchEngine` if there are several rows.
        tokenizer: a transformers tokenizer, or None for ids only.
        max_length: tokens that the cache holds for a text, prompt and output together.
        max_batch_size: rows.
    """

    def __init__(
        self, model: Any, recipe: Recipe[Any], *, tokenizer: Any, max_length: int, max_batch_size: int = 1
    ) -> None:
        check_tokenizer(tokenizer)
        self._model = model
        self.tokenizer = tokenizer
        self._max_length = max_length
        self._ends: frozenset[int] | None = None
        ranks = ranks_of(model)
        self._kept: Kept[Any] = Kept(model, recipe if ranks is None else shared_recipe(recipe))
        self._follower = None if ranks is None or ranks.rank == 0 else Follower(self._kept)
        self._maker: RoundMaker = self._follower or (Turns if max_batch_size == 1 else EngineThread)(self._kept)
        self._max_batch_size = max_batch_size
        _ = self.engine  # what does not fit is refused now

    def __reduce__(self) -> NoReturn:
        """A copy would share the caches and not know whose text they hold."""
        raise UsageError(f"a {type(self).__name__} cannot be copied or pickled: make another one for the same model")

    @property
    def model(self) -> Any:
        """The model that decodes; another one needs a decoder of its own."""
        return self._model

    @property
    def max_length(self) -> int:
        """Tokens that the cache holds, prompt and output together."""
        return self._max_length

    @property
    def max_batch_size(self) -> int:
        """Texts that share a round, at most."""
        return self._max_batch_size

    @property
    def engine(self) -> E:
        """What makes the rounds; made again once the model was moved, cast or given other modules."""
        engine: E = self._kept.engine
        return engine

    @property
    def engine_name(self) -> str:
        """Which runner makes the rounds, or made them last."""
        return self._kept.name

    @property
    def is_follower(self) -> bool:
        """Whether the model is split over the ranks of torchrun and this is another one than rank 0: see `follow`."""
        return self._follower is not None

    def follow(self) -> None:
        """Repeat what rank 0 decodes, until its program ends, on the other ranks of a model that is split over several.

        Make the same decoders in the same order on every rank, then let rank 0 use them and the others follow, one
        call for all of them. Signals are left to rank 0 meanwhile.

        Raises:
            UsageError: on rank 0, or where one process has the whole model.
            RanksError: the ranks do not go on together, as rank 0 has died or decodes something else. The process
                should end then, and torchrun ends the others.
        """
        if self._follower is None:
            raise UsageError("follow is for the ranks of torchrun other than 0 that hold a part of the model")
        self._follower.follow()

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows, as it is now."""
        return vocabulary_size(self.model)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a text: assigned here (None: no longer), else of the model's generation config, else the
        tokenizer's."""
        return frozenset(end_token_ids(self.model, self.tokenizer)) if self._ends is None else self._ends

    @eos_token_ids.setter
    def eos_token_ids(self, ids: Iterable[int] | int | None) -> None:
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        check_end_tokens(ids, self.vocab_size)
        self._ends = None if ids is None else frozenset(ids if isinstance(ids, Iterable) else (ids,))

    @property
    def metrics(self) -> DecodeMetrics:
        """The running total over every generation of this decoder, those that were cancelled included."""
        return self._kept.tally.summary(self.engine_name)

    def rounds(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Sequence:
        """Generate round by round; for one seed every decoder, tree and policy gives one text.

        Args:
            prompt: text, token ids, a tensor of ids [P] or [1, P], or chat messages (dicts with "role" and "content"),
                which go through the tokenizer's chat template. A conversation goes on from what the caches hold of it.
            options: see `GenerateOptions`.

        Returns:
            An iterator over `Round`s, the prompt's pass first; `close` ends it early, from any thread.

        Raises:
            UsageError: before any work, if the prompt is empty, too long, or holds ids that the target does not know,
                if the limit is not positive or does not fit, or an option is wrong.
            BusyError: when it is read from inside of a round of this decoder, in a processor or criterion.
        """
        return self._maker.open(self._request(prompt, options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """Generate and hand out text as it becomes certain; see `rounds` for the arguments and errors."""
        if self.tokenizer is None:
            raise UsageError("stream needs a tokenizer; pass tokenizer= to the decoder, or use rounds for token ids")
        sequence = self.rounds(prompt, **options)
        return TextStream(self.tokenizer, sequence, lambda: sequence.output(self.tokenizer, self.engine_name))

    def astream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncTextStream:
        """`stream` for `async for`, in any event loop, which goes on meanwhile. A task that is cancelled ends the text;
        `async with decoder.astream(...) as pieces` ends it however the block is left, by `break` too. See `rounds` for
        the arguments and errors."""
        self._kept.check()
        return AsyncTextStream(self.stream(prompt, **options))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, prompt: Prompt, *, streamer: Any = None, **options: Unpack[GenerateOptions]
    ) -> GenerationOutput: ...
    @overload
    def generate(
        self, prompt: Prompts, *, streamer: None = None, **options: Unpack[GenerateOptions]
    ) -> list[GenerationOutput]: ...
    def generate(
        self, prompt: Prompt | Prompts, *, streamer: Any = None, **options: Unpack[GenerateOptions]
    ) -> GenerationOutput | list[GenerationOutput]:
        """Generate to the end; see `rounds` for the arguments and errors.

        Args:
            prompt: one, or a list of several: of texts, of lists or tensors of ids, of conversations. They share rounds
                where the decoder has several rows. The options hold for all, but `seed` s is s + i for prompt i.
            streamer: gets the prompt [1, P], then each token [1], by `put`, and `end` when there are no more, as
                transformers' streamers do; `end` after an error too. Of one prompt alone.

        Returns:
            The output, or the outputs in the prompts' order.

        Raises:
            BatchError: if some of several prompts failed, when the others have their texts.
        """
        started = time.perf_counter()
        if are_many(prompt):
            if streamer is not None:
                release(streamer)
                raise UsageError("RADAR cannot honour streamer= for several prompts: call generate for each")
            return self._generate_all(prompt, options)
        with ended(streamer):
            sequence = self.run(self._request(cast("Prompt", prompt), options), streamer)
        return sequence.output(self.tokenizer, self.engine_name, time.perf_counter() - started)

    def _generate_all(self, prompts: Any, options: GenerateOptions) -> list[GenerationOutput]:
        given, count = check_options(options), len(prompts)
        texts, errors = decode_all(count, lambda i: self._request(prompts[i], seeded(given, i)), self._maker)
        done = {i: text.output(self.tokenizer, self.engine_name) for i, text in texts.items() if i not in errors}
        if errors and not texts:  # what is wrong is wrong for all of them
            raise errors[0]
        if errors:
            raise BatchError([done.get(i) for i in range(count)], errors) from errors[min(errors)]
        return list(done.values())

    def generate_batch(
        self, inputs: Iterable[list[int]], generation_config: Any = None, **arguments: Any
    ) -> dict[str, RequestOutput]:
        """transformers' `model.generate_batch`, decoded here.

        Args:
            inputs: token ids of each prompt.
            generation_config: in place of the model's own, whose values fill what it leaves open.
            arguments: of `generate_ids`; of transformers' `generate_batch` those that need nothing done.

        Returns:
            Outputs in the prompts' order, by request id. One that failed has its `error` and no exception is raised,
            unless all of them are refused.
        """
        return generate_batch(inputs, generation_config, arguments, self.context(), self._maker)

    def generate_ids(self, inputs: Tensor | None = None, **arguments: Any) -> Any:
        """transformers' `model.generate`, decoded here: its arguments, defaults and results.

        Args:
            inputs: token ids [B, P], padded on the left.
            arguments: of transformers' `generate`, and `seed`, s + i for row i; README.md beside this file lists them.
                Without a seed the noise follows `torch.manual_seed`.

        Returns:
            Prompts and outputs [B, P + N], short ones filled on the right with the pad token, or with
            `return_dict_in_generate=True` a `RadarGenerateOutput`.

        Raises:
            UsageError: for an argument that cannot be honoured, by its name.
        """
        with ended(streamer := arguments.get("streamer")):
            return self.answer(call_of_ids(inputs, arguments, self.context()), streamer)

    def answer(self, call: IdsCall, streamer: Any = None, *, put_prompt: bool = True) -> Any:
        """What transformers' `generate` would return; see `run` for the rest."""
        started = time.perf_counter()
        texts = self._run_all(call.requests, streamer, put_prompt=put_prompt)
        return call.result([text.rounds for text in texts], self.engine_name, time.perf_counter() - started)

    def run(self, request: Request, streamer: Any = None, *, put_prompt: bool = True) -> Sequence:
        """Decode a request to its end, with one row before anybody else has a turn, and feed a streamer."""
        return self._run_all([request], streamer, put_prompt=put_prompt)[0]

    def _run_all(self, requests: list[Request], streamer: Any = None, *, put_prompt: bool = True) -> list[Sequence]:
        with self._maker.undisturbed():
            texts = [self._maker.open(request) for request in requests]
            try:
                for text in texts:
                    feed(text, streamer, put_prompt=put_prompt)
            finally:
                for text in texts:
                    text.close()
        return texts

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Text gets the tokenizer's special tokens, messages its chat template."""
        return encode_prompt(prompt, self.tokenizer, self.vocab_size).ids

    def context(self) -> Context:
        """What a request depends on, as it is now."""
        return Context(self.model, self.tokenizer, self.max_length, self.vocab_size, self.eos_token_ids, self._ends)

    def _request(self, prompt: Prompt, options: Mapping[str, Any]) -> Request:
        encoded = encode_prompt(
            prompt,
            self.tokenizer,
            self.vocab_size,
            tools=options.get("tools"),
            chat_template_kwargs=options.get("chat_template_kwargs"),
        )
        return make_request(encoded, options, self.context())


def check_rows(rows: Any, cache_tokens: Any, most: int) -> None:
    """Raise UsageError for a `max_batch_size` or `cache_tokens` that cannot be."""
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= most:
        raise UsageError(f"max_batch_size, texts in a round, must be an integer from 1 to {most}, got {rows!r:.80}")
    if cache_tokens is not None and (rows == 1 or isinstance(cache_tokens, bool) or not isinstance(cache_tokens, int)):
        raise UsageError(
            f"cache_tokens is how many tokens several rows hold together, an integer, got {cache_tokens!r:.80} for "
            f"max_batch_size={rows}: one row holds max_length"
        )
