"""An engine of rank 0, whose calls the other ranks repeat on their parts of the model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor

from radar.config import SamplingParams
from radar.engine.base import EngineRequest, Processing
from radar.engine.channel import Channel, Op
from radar.engine.sampler import Sampler
from radar.metrics import Round

__all__ = ["LeadingEngine", "LeadingRows", "OwnRequest", "ToldRequest", "agree", "leading"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


class ToldRequest(NamedTuple):
    """A request as the other ranks get it.

    Attributes:
        is_processed: processors on the host of rank 0 choose its tokens.
        hurry: as in `BatchEngine.admit`.
    """

    input_ids: list[int]
    sampling: SamplingParams
    reuse_prefix: bool
    is_processed: bool
    hurry: bool = False


@dataclass(frozen=True)
class OwnRequest:
    """What an engine reads of a request, see `EngineRequest`."""

    input_ids: list[int]
    sampling: SamplingParams
    reuse_prefix: bool
    processing: Processing | None
    logprobs: int | None = None


@dataclass(frozen=True)
class _Said:
    """Processing whose choices the other ranks are told: a processor may be anything, and is called once."""

    inner: Processing
    channel: Channel

    def choose(self, sampler: Sampler, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor]:
        """See `Processing`."""
        with self._telling() as tell:
            token, scores = self.inner.choose(sampler, logits, text)
            tell([token])
        return token, scores

    def walk(self, sampler: Sampler, nodes: Any, logits: Tensor, text: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Processing`."""
        with self._telling() as tell:
            found = self.inner.walk(sampler, nodes, logits, text)
            tell(found[0][0].tolist())
        return found

    @contextmanager
    def _telling(self) -> Iterator[Callable[[list[int]], None]]:
        """What is raised in it the others raise as well."""
        try:
            yield lambda tokens: self.channel.tell(Op.SAID, payload=tokens)
        except BaseException:
            self.channel.tell(Op.SAID)
            raise


@contextmanager
def leading(
    channel: Channel, op: Op, decoder: int, number: int = 0, payload: Any = None, *, policy: Any = None
) -> Iterator[None]:
    """A call of an engine, of which the others are told before, with a policy in place of number and payload if it is
    about one. Signals wait until it has been made, since half a forward would leave them waiting."""
    with channel.turn.taken(), _uninterrupted():
        if policy is None:
            channel.tell(op, decoder, number, payload)
        else:
            channel.tell_policy(op, decoder, policy)
        try:
            yield
        except BaseException as error:
            channel.fail(error)
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # which gets no signals
        return
    caught: list[int] = []
    before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in caught:
            signal.raise_signal(number)


def agree(engine: Any, agreed: Callable[[bool], bool]) -> None:
    """Let whoever chooses between rounds and plain steps ask: what their times say differs between ranks."""
    for owner in getattr(engine, "widths", [engine]):
        if (fallback := getattr(owner, "fallback", None)) is not None:
            fallback.agreed = agreed


class _Leading:
    """What an engine of one row and one of several have in common. What is not here is the engine's own.

    Args:
        engine: which makes the rounds of this rank.
        channel: to the others.
        decoder: whose engine it is, by number.
    """

    def __init__(self, engine: Any, channel: Channel, decoder: int) -> None:
        self._engine, self._channel, self._decoder = engine, channel, decoder
        agree(engine, channel.say)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _leading(self, op: Op, number: int = 0, payload: Any = None) -> Any:
        return leading(self._channel, op, self._decoder, number, payload)

    def refresh(self) -> bool:
        """See `Engine`."""
        with self._leading(Op.REFRESH):
            return bool(self._engine.refresh())

    def set_policy(self, policy: Any) -> None:
        """See `RoundEngine`. Raises UsageError also for a policy that cannot be sent."""
        with leading(self._channel, Op.POLICY, self._decoder, policy=policy):
            self._engine.set_policy(policy)

    def launch_next(self) -> None:
        """See `Engine`."""
        with self._leading(Op.LAUNCH):
            self._engine.launch_next()

    def _request(self, request: EngineRequest, *, hurry: bool = False) -> tuple[OwnRequest, ToldRequest]:
        """The request for this rank's engine, and for the others'."""
        sampling, processing = request.sampling, request.processing
        assert sampling.seed is not None  # or each rank would draw its own
        said = None if processing is None else _Said(processing, self._channel)
        told = ToldRequest(request.input_ids, sampling, request.reuse_prefix, processing is not None, hurry)
        return OwnRequest(told.input_ids, sampling, told.reuse_prefix, said, request.logprobs), told


class LeadingEngine(_Leading):
    """An `Engine` or `RoundEngine` that leads."""

    def admit(self, request: EngineRequest) -> Round:
        """See `Engine`."""
        own, told = self._request(request)
        with self._leading(Op.ADMIT, payload=told):
            return self._seen(self._engine.admit(own))

    def launch_next(self) -> None:
        """See `Engine`."""
        if self._engine.name != "eager":  # which makes nothing ahead
            super().launch_next()

    def round(self) -> Round:
        """See `Engine`."""
        with self._leading(Op.ROUND):
            return self._seen(self._engine.round())

    def release(self) -> None:
        """See `Engine`. The others need not know: they have nothing of the request's."""
        self._engine.release()

    def _seen(self, item: Round) -> Round:
        self._channel.see(item)
        return item


class LeadingRows(_Leading):
    """A `BatchEngine` that leads; a key is a number to the others."""

    def __init__(self, engine: Any, channel: Channel, decoder: int) -> None:
        super().__init__(engine, channel, decoder)
        self._numbers: dict[Hashable, int] = {}
        self._last, self._takes = 0, False

    def admit(self, key: Hashable, request: EngineRequest, *, hurry: bool) -> Iterator[int]:
        """See `BatchEngine`."""
        self._last += 1
        number = self._numbers[key] = self._last
        own, told = self._request(request, hurry=hurry)
        op, payload, chunks = Op.ADMIT, cast("ToldRequest | None", told), None
        while True:
            with self._leading(op, number, payload):
                chunks = chunks or self._engine.admit(key, own, hurry=hurry)
                taken = next(chunks, None)
                self._takes = self._takes or taken != 0
            if taken is None:
                return
            yield taken
            op, payload = Op.TAKE, None

    def entered(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        if not self._takes:  # since it was asked last
            return {}
        self._takes = False
        with self._leading(Op.ENTERED):
            return self._seen(self._engine.entered())

    def round(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        with self._leading(Op.ROUND):
            return self._seen(self._engine.round())

    def release(self, key: Hashable) -> None:
        """See `BatchEngine`."""
        if (number := self._numbers.pop(key, None)) is not None:  # else the engine has not been given it
            with self._leading(Op.RELEASE, number):
                self._engine.release(key)

    def _seen(self, made: dict[Hashable, Round]) -> dict[Hashable, Round]:
        for item in made.values():
            self._channel.see(item)
        return made
