"""What rank 0 tells the other ranks of a model: which call of an engine comes next, and what the host has decided."""

from __future__ import annotations

import atexit
import functools
import io
import os
import pickle
import sys
import time
import traceback
import zlib
from datetime import timedelta
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

import torch
from torch import distributed

from radar.errors import RanksError, UsageError
from radar.metrics import Round
from radar.target.ranks import FOREVER
from radar.target.turn import Turn

__all__ = ["Channel", "Message", "Op"]

ANSWER = timedelta(seconds=60)  # that a rank may take to say that it has failed too, or has ended


class Op(IntEnum):
    """What rank 0 does, or says in the middle of it."""

    END = 0
    FAILED = 1
    SAID = 2
    BUILD = 3
    REFRESH = 4
    POLICY = 5
    ADMIT = 6
    TAKE = 7
    ENTERED = 8
    LAUNCH = 9
    ROUND = 10
    RELEASE = 11


class Message(NamedTuple):
    """What has been told.

    Attributes:
        op: what it is about.
        decoder: by its number.
        number: of a text, or whatever the op needs.
        payload: what does not fit into a number.
    """

    op: Op
    decoder: int
    number: int
    payload: Any


class Channel:
    """Of this process, one for all of its decoders: calls have one order on all ranks. Every rank makes it at the same
    place of its program.

    A message is five numbers, and what is pickled behind them where there is something. One of the numbers is a sum of
    all rounds that the rank has seen, so that ranks which have parted find it out with the next message.

    Attributes:
        rank: of this process.
        turn: who calls an engine holds it.
    """

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.turn = Turn("torchrun job")
        self._waiting = distributed.new_group(backend="gloo", timeout=FOREVER)
        self._answering = distributed.new_group(backend="gloo", timeout=ANSWER)
        self._policies: list[Any] = []
        self._decoders = 0
        self._seen = 0
        self._has_begun = self._has_ended = False
        if self.rank == 0:
            atexit.register(self._end)

    @staticmethod
    def here() -> Channel:
        """Of this process."""
        return _channel()

    def number_decoder(self) -> int:
        """One more decoder, which has this number on all ranks. Raises UsageError once rank 0 has begun to decode, when
        no other rank makes one."""
        if self._has_begun:
            raise UsageError(
                "the other ranks of this torchrun job follow already: make all decoders of the split model on every "
                "rank before rank 0 asks for a text"
            )
        self._decoders += 1
        return self._decoders - 1

    def see(self, item: Round) -> None:
        """Take note of what a round has yielded."""
        found = item.tokens, item.num_draft_calls, item.num_draft_tokens, item.accept_length
        self._seen = zlib.crc32(repr(found).encode(), self._seen)

    def tell(
        self, op: Op, decoder: int = 0, number: int = 0, payload: Any = None, *, patience: timedelta = FOREVER
    ) -> None:
        """Tell the other ranks, once they listen. Raises RanksError if one is gone, or does not listen for so long."""
        if self._has_ended:
            raise RanksError("this torchrun job is at its end: the other ranks follow no more")
        self._has_begun = True
        data = b"" if payload is None else pickle.dumps(payload)
        head = torch.tensor([op, decoder, number, self._seen, len(data)])
        try:
            work: Any = distributed.broadcast(head, 0, group=self._waiting, async_op=True)
            work.wait(patience)
            if data:
                distributed.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._waiting)
        except RuntimeError as error:
            self._has_ended = True
            raise RanksError(
                "another rank has ended: look for its error above; a rank of torchrun other than 0 is to call "
                "decoder.follow(), which returns when rank 0 has ended"
            ) from error

    def hear(self, patience: timedelta = FOREVER) -> Message:
        """The next message, on a rank that follows.

        Raises:
            RanksError: rank 0 has gone without a word, has said nothing for so long, or has seen other tokens.
        """
        head = torch.zeros(5, dtype=torch.int64)
        try:
            work: Any = distributed.broadcast(head, 0, group=self._waiting, async_op=True)
            work.wait(patience)
            op, decoder, number, seen, size = head.tolist()
            data = torch.zeros(size, dtype=torch.uint8)
            if size:
                distributed.broadcast(data, 0, group=self._waiting)
        except RuntimeError as error:
            raise RanksError("rank 0 has ended without saying so, or does not answer: see its error") from error
        if op != Op.FAILED and seen != self._seen:  # what has failed there alone is not seen there
            raise RanksError(
                f"rank {self.rank} has decoded something else than rank 0: the ranks' programs, weights or cards differ"
            )
        return Message(Op(op), decoder, number, pickle.loads(data.numpy().tobytes()) if size else None)

    def say(self, value: bool) -> bool:
        """Decide for all ranks, in the middle of a call."""
        self.tell(Op.SAID, number=value)
        return value

    def said(self) -> Message:
        """What rank 0 has said in the middle of a call."""
        message = self.hear()
        if message.op is not Op.SAID:
            raise RanksError(
                f"rank 0 is at {message.op.name} where rank {self.rank} waits for its word: ranks have parted"
            )
        return message

    def know(self, policy: Any) -> None:
        """A policy that every rank has been given."""
        if not any(known is policy for known in self._policies):
            self._policies.append(policy)

    def tell_policy(self, op: Op, decoder: int, policy: Any) -> None:
        """`tell` with a policy by its number, and all of it for ranks that do not know it yet. Raises UsageError too,
        for one that cannot be sent."""
        for number, known in enumerate(self._policies):
            if known is policy:
                self.tell(op, decoder, number)
                return
        data = io.BytesIO()
        try:
            torch.save(policy, data)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{type(policy).__name__} cannot be sent to the other ranks ({error}): make it of a class that a "
                "module of your program defines"
            ) from error
        self.tell(op, decoder, len(self._policies), data.getvalue())
        self._policies.append(policy)

    def policy(self, number: int, data: bytes | None) -> Any:
        """The policy that `tell_policy` told. For one number it is one object, as graphs are kept by policy."""
        if data is not None:
            assert number == len(self._policies)
            self._policies.append(torch.load(io.BytesIO(data), map_location="cpu", weights_only=False))
        return self._policies[number]

    def fail(self, error: BaseException) -> None:
        """A call has failed here: find out whether it has on all ranks, which may go on then. A job whose others do not
        answer, as they wait for this rank in the middle of a forward, ends here.

        Raises RanksError if another rank has ended, which may be why.
        """
        if isinstance(error, RanksError):
            return
        if self._is_unheard(Op.FAILED):
            self._die(error)
        if self._has_ended:
            raise RanksError("another rank has ended: look for its error above") from error

    def failed_together(self, error: BaseException) -> None:
        """A call has failed on this rank that follows; raise the error unless rank 0 says that it has there too."""
        try:
            message = self.hear(ANSWER)
        except RanksError:
            raise error from None
        if message.op is not Op.FAILED:
            raise error
        self.answer()

    def answer(self) -> None:
        """Let rank 0 know that this one is there."""
        if not self._answers():
            raise RanksError("another rank does not answer")

    def _answers(self) -> bool:
        try:
            distributed.barrier(self._answering)
        except RuntimeError:
            return False
        return True

    def _end(self) -> None:
        """The program of rank 0 ends, for whatever reason."""
        if self._has_ended:
            return
        with self.turn.taken():  # behind the call that a thread is making
            if self._is_unheard(Op.END):
                self._die(RanksError("another rank does not follow"))
            self._has_ended = True

    def _is_unheard(self, op: Op) -> bool:
        """Tell something that is to be answered soon; whether a rank that is there does not answer."""
        began = time.monotonic()
        try:
            self.tell(op, patience=ANSWER)
            if self._answers():
                return False
        except RanksError:
            pass
        self._has_ended = True  # by a status of its own, if it is not there any more
        return time.monotonic() - began >= ANSWER.total_seconds()

    def _die(self, error: BaseException) -> NoReturn:
        """The others wait for what does not come: torchrun ends them when a rank has failed."""
        traceback.print_exception(error)
        print("radar: the ranks of this job have parted; it ends here", file=sys.stderr, flush=True)
        os._exit(1)


@functools.cache
def _channel() -> Channel:
    return Channel()
