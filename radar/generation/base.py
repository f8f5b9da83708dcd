"""What every decoder offers on top of its engine: `rounds` -> `stream` -> `generate`, text or ids in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, Protocol, TypeVar, Unpack

from torch import Tensor

from radar.engine.ambient import StreamOrder, ambient
from radar.engine.base import Engine
from radar.errors import BusyError, UsageError
from radar.generation.call import check_end_tokens, make_request
from radar.generation.hf import call_of_ids
from radar.generation.options import GenerateOptions
from radar.generation.prompt import Prompt, check_tokenizer, encode_prompt
from radar.generation.request import Context, Request
from radar.generation.sequence import GenerationOutput, Sequence
from radar.generation.streamers import ended, feed
from radar.generation.text import TextStream
from radar.metrics import DecodeMetrics, Round, Tally
from radar.target.families import vocabulary_size
from radar.target.turn import Turn

__all__ = ["Decoder", "Prompt", "end_token_ids"]


E = TypeVar("E", bound=Engine)
E_co = TypeVar("E_co", bound=Engine, covariant=True)


class Recipe(Protocol[E_co]):
    """What an engine is made of beside the model."""

    def turns(self, model: Any) -> list[Turn]:
        """What its rounds wait for."""

    def build(self, model: Any) -> E_co:
        """An engine for the model as it is now."""


class Decoder(Generic[E]):
    """Requests in, texts out, one text at a time.

    Any thread may ask for a text while another one is being made. `generate` waits for its turn; streams and rounds
    take turns round by round, at the price of a prompt's pass at every change.

    Args:
        model: the transformers model that decodes.
        tokenizer: a transformers tokenizer, or None for ids only.
        max_length: tokens that the cache holds, prompt and output together.
        recipe: makes the engine for the model as it is: at first, and when its modules or storages are others.
    """

    def __init__(self, model: Any, recipe: Recipe[E], *, tokenizer: Any, max_length: int) -> None:
        check_tokenizer(tokenizer)
        self._model = model
        self.tokenizer = tokenizer
        self._max_length = max_length
        self._recipe = recipe
        self._ends: frozenset[int] | None = None
        self._turn = threading.RLock()
        self._stepping: int | None = None  # thread that makes a round
        self._held: object = None  # token of the sequence whose text the engine holds
        self._tally = Tally()
        self._order = StreamOrder()
        self._engine: E | None = None
        self._engine = self.engine  # what does not fit is refused now

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
    def engine(self) -> E:
        """What makes the rounds; made again once the model was moved, cast or given other modules."""
        engine = self._engine
        if engine is None:
            with self._taking_turn():  # a thread that reads figures must not make a second one beside it
                if self._engine is None:
                    with ambient(self.model.device):
                        self._order.follow(self.model.device)
                        self._engine = self._recipe.build(self.model)
                    self._name = self._engine.name
                engine = self._engine
        return engine

    @property
    def engine_name(self) -> str:
        """Which runner makes the rounds, or made them last."""
        return self._name

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
        return self._tally.summary(self.engine_name)

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
        return self._open(self._request(prompt, options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """Generate and hand out text as it becomes certain; see `rounds` for the arguments and errors."""
        if self.tokenizer is None:
            raise UsageError("stream needs a tokenizer; pass tokenizer= to the decoder, or use rounds for token ids")
        sequence = self.rounds(prompt, **options)
        return TextStream(self.tokenizer, sequence, lambda: sequence.output(self.tokenizer, self.engine_name))

    def generate(self, prompt: Prompt, *, streamer: Any = None, **options: Unpack[GenerateOptions]) -> GenerationOutput:
        """Generate to the end; see `rounds` for the arguments and errors.

        Args:
            streamer: gets the prompt [1, P], then each token [1], by `put`, and `end` when there are no more, as
                transformers' streamers do; `end` after an error too.
        """
        started = time.perf_counter()
        with ended(streamer):
            sequence = self.run(self._request(prompt, options), streamer)
        return sequence.output(self.tokenizer, self.engine_name, time.perf_counter() - started)

    def generate_ids(self, inputs: Tensor | None = None, **arguments: Any) -> Any:
        """transformers' `model.generate`, decoded here: its arguments, defaults and results.

        Args:
            inputs: token ids [1, P].
            arguments: of transformers' `generate`, and `seed`; README.md beside this file lists them. Without a seed
                the noise follows `torch.manual_seed`.

        Returns:
            Prompt and output [1, P + N], or with `return_dict_in_generate=True` a `RadarGenerateOutput`.

        Raises:
            UsageError: for an argument that cannot be honoured, by its name.
        """
        with ended(arguments.get("streamer")):
            call = call_of_ids(inputs, arguments, self.context())
            sequence = self.run(call.request, arguments.get("streamer"))
        return call.result(sequence.rounds, self.engine_name)

    def run(self, request: Request, streamer: Any = None, *, put_prompt: bool = True) -> Sequence:
        """Decode a request to its end, before anybody else has a turn, and feed a streamer."""
        with self._taking_turn():
            sequence = self._open(request)
            try:
                feed(sequence, streamer, put_prompt=put_prompt)
            finally:
                sequence.close()
        return sequence

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Text gets the tokenizer's special tokens, messages its chat template."""
        return encode_prompt(prompt, self.tokenizer, self.vocab_size).ids

    def context(self) -> Context:
        """What a request depends on, as it is now."""
        return Context(self.model, self.tokenizer, self.max_length, self.vocab_size, self.eos_token_ids, self._ends)

    def _request(self, prompt: Prompt, options: GenerateOptions) -> Request:
        encoded = encode_prompt(
            prompt,
            self.tokenizer,
            self.vocab_size,
            tools=options.get("tools"),
            chat_template_kwargs=options.get("chat_template_kwargs"),
        )
        return make_request(encoded, options, self.context())

    def _open(self, request: Request) -> Sequence:
        return Sequence(request, self._step, self._release, self.model.device)

    @contextmanager
    def _taking_turn(self) -> Iterator[None]:
        for turn in self._recipe.turns(self.model):
            turn.check()  # who has the decoder's turn may wait for what we hold
        with self._turn:
            yield

    def _step(self, sequence: Sequence) -> Round | None:
        """Make the sequence's next round; None if it was closed meanwhile."""
        if self._stepping == threading.get_ident():
            raise BusyError(
                "this decoder is in the middle of a round, whose processor or criterion asks it for another text: use "
                "another decoder there, or ask when the round has ended"
            )
        with self._taking_turn():
            if sequence.has_ended:
                return None
            started = time.perf_counter()
            try:
                self._stepping = threading.get_ident()
                with ambient(self.model.device):
                    self._order.follow(self.model.device)
                    item = self._make(sequence)
            except BaseException:
                sequence.finish_reason = "error"
                raise
            finally:
                self._stepping = None
                if sequence.has_ended:
                    self._let_go()
                sequence.seconds += time.perf_counter() - started
                self._tally.seconds += time.perf_counter() - started
        return item

    def _release(self, token: object) -> None:
        """Let go of a sequence that was closed; where a round is under way, that is done behind it."""
        if self._turn.acquire(blocking=False):
            try:
                if self._held is token and self._stepping is None:
                    self._let_go()
            finally:
                self._turn.release()

    def _let_go(self) -> None:
        self._held = None
        if self._engine is not None:
            self._engine.release()

    def _make(self, sequence: Sequence) -> Round:
        if self._held is sequence.token:
            item = self.engine.round()
        else:
            if not self.engine.refresh():
                self._engine = None  # its memory is free before the next one takes its own
            self._held = None  # until the prompt is in, the engine holds nobody's text
            if max(sequence.ids) >= self.engine.target.vocab_size:
                raise UsageError(
                    f"the prompt holds id {max(sequence.ids)}, and the vocabulary has shrunk to "
                    f"{self.engine.target.vocab_size} ids since it was taken"
                )
            item = self.engine.admit(sequence.resumed())
            self._held = sequence.token
            if sequence.rounds:  # it goes on, after another text had its turn
                item.num_prompt_tokens = item.num_reused_tokens = 0
            else:
                self._tally.num_generations += 1
        sequence.take(item)
        self._tally.add(item)
        if sequence.finish_reason is None:
            self.engine.launch_next()
        return item


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a text: the model's generation config, else the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(tokenizer, "eos_token_id", None)
    if ids is None:
        return []
    return [int(ids)] if isinstance(ids, int) else [int(token) for token in ids]
