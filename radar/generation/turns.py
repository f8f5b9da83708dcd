"""Who makes the rounds of a decoder's texts: here, whoever reads a text, one round after the other, in turn."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Protocol

from radar.engine.ambient import ambient
from radar.engine.base import Engine
from radar.errors import UsageError
from radar.generation.kept import Kept
from radar.generation.request import Request, check_vocabulary
from radar.generation.sequence import Sequence
from radar.metrics import Round
from radar.target.adapters import ActiveAdapters

__all__ = ["RoundMaker", "Turns"]


class RoundMaker(Protocol):
    """Makes the rounds of a decoder's texts: `Turns`, or an `EngineThread`."""

    def open(self, request: Request) -> Sequence:
        """The rounds of a text."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Where texts are read to their end, and need not be taken in again after others."""


class Turns:
    """One row: its texts take turns round by round, at the price of a prompt's pass at every change.

    Args:
        kept: with an engine of one row.
    """

    def __init__(self, kept: Kept[Engine]) -> None:
        self._kept = kept
        self._held: object = None  # token of the sequence whose text the engine holds

    def open(self, request: Request) -> Sequence:
        """See `RoundMaker`."""
        return Sequence(request, self._step, self._release, self._kept.model.device)

    def undisturbed(self) -> AbstractContextManager[None]:
        """See `RoundMaker`."""
        return self._kept.taking_turn()

    def _step(self, sequence: Sequence) -> Round | None:
        """Make the sequence's next round; None if it was closed meanwhile."""
        kept = self._kept
        kept.check()
        with kept.taking_turn():
            if sequence.has_ended:
                return None
            started = time.perf_counter()
            try:
                kept.stepping = threading.get_ident()
                with ambient(kept.model.device):
                    kept.order.follow(kept.model.device)
                    item = self._make(sequence)
            except BaseException:
                sequence.finish_reason = "error"
                raise
            finally:
                kept.stepping = None
                if sequence.has_ended:
                    self._let_go()
                sequence.seconds += time.perf_counter() - started
                kept.tally.seconds += time.perf_counter() - started
        return item

    def _release(self, token: object) -> None:
        """Let go of a sequence that was closed; where a round is under way, that is done behind it."""
        if self._kept.turn.acquire(blocking=False):
            try:
                if self._held is token and self._kept.stepping is None:
                    self._let_go()
            finally:
                self._kept.turn.release()

    def _let_go(self) -> None:
        self._held = None
        if self._kept.made is not None:
            self._kept.made.release()

    def _check(self, sequence: Sequence) -> None:
        assert sequence.adapters is not None
        try:
            sequence.adapters.check()
        except UsageError:
            self._held = self._kept.made = None  # its caches may hold rows of both
            raise

    def _make(self, sequence: Sequence) -> Round:
        kept = self._kept
        if self._held is sequence.token:
            item = kept.engine.round()
        else:
            if sequence.adapters is None:
                sequence.adapters = ActiveAdapters(kept.model)
            if not kept.engine.refresh():
                kept.made = None  # its memory is free before the next one takes its own
            self._held = None  # until the prompt is in, the engine holds nobody's text
            check_vocabulary(sequence.ids, kept.engine.target.vocab_size)
            item = kept.engine.admit(sequence.resumed())
            self._held = sequence.token
            if sequence.rounds:  # it goes on, after another text had its turn
                item.num_prompt_tokens = item.num_reused_tokens = 0
            else:
                kept.tally.num_generations += 1
        self._check(sequence)
        sequence.take(item)
        kept.tally.add(item)
        if sequence.finish_reason is None:
            kept.engine.launch_next()
        return item
