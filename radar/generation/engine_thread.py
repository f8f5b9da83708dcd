"""Who makes the rounds of a decoder's texts: here, one thread for all of them, so that they share rounds."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

import torch

from radar.engine.ambient import ambient
from radar.engine.base import BatchEngine
from radar.errors import UsageError
from radar.generation.batch import Batch
from radar.generation.kept import Kept
from radar.generation.request import Request
from radar.generation.round_queue import Made, RoundQueue
from radar.generation.sequence import Sequence
from radar.metrics import Round
from radar.target.adapters import ActiveAdapters
from radar.target.bound import BoundModel
from radar.target.fingerprint import Fingerprint, fingerprint

__all__ = ["EngineThread"]


class _Text(Sequence):
    """A text that the thread decodes for a reader elsewhere.

    Attributes:
        queue: brings the reader its rounds.
        stream: the CUDA stream that the reader asked on; None on a CPU.
    """

    def __init__(self, request: Request, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        super().__init__(request, lambda _: None, lambda _: None, device)
        self.queue, self.stream = RoundQueue(), stream

    def let_go(self, token: object) -> None:
        """Its reader has closed it, and may be waiting in another thread."""
        self.close()
        self.queue.put(Made(None))


class EngineThread:
    """Several rows: texts of any threads and event loops join and leave between rounds.

    The thread starts with the first text and sleeps while there is none. It takes the decoder's turn, and the model's,
    for a round at a time. A text's rounds are made whether or not they have been read; one that is closed, or that
    nobody refers to any more, is out of the batch within a round.

    The model is looked at whenever a text joins. Where it has changed, that text waits until those under way have
    ended: they go on, within two rounds with the weights that the model has then. Where it is adapters that were
    switched, those under way end with an error.

    An exception of the engine ends all texts, those that wait too, and the next text gets a new engine.

    Args:
        kept: with an engine of several rows.
    """

    def __init__(self, kept: Kept[BatchEngine]) -> None:
        self._kept = kept
        self._batch = Batch()
        self._print: Fingerprint | None = None  # the model's, when the engine was last refreshed
        self._adapters: ActiveAdapters | None = None  # then
        self._starting = threading.Lock()
        self._inbox: SimpleQueue[_Text | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, request: Request) -> Sequence:
        """See `RoundMaker`."""
        self._check()
        device = self._kept.model.device
        with ambient(device):
            stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        text = _Text(request, device, stream)
        plain = replace(request, criteria=(), processing=None)  # the thread asks them
        queue = text.queue
        sequence = Sequence(plain, partial(self._next, text), text.let_go, device, ready=queue.ready, hold=queue.hold)
        self._start()
        self._inbox.put(text)
        return sequence

    def undisturbed(self) -> AbstractContextManager[None]:
        """See `RoundMaker`."""
        return nullcontext()

    def _check(self) -> None:
        self._kept.check()
        self._kept.check_turns()  # the thread would wait for what we hold

    def _next(self, text: _Text, sequence: Sequence) -> Round | None:
        """The sequence's next round; None if it was closed meanwhile."""
        self._check()
        try:
            item, seconds = text.queue.get()
            if item is None or sequence.has_ended:
                return None
            sequence.seconds = seconds
            if isinstance(item, BaseException):
                sequence.ids[:] = text.ids
                raise item
            sequence.ids += item.tokens
            sequence.rounds.append(item)
            sequence.finish_reason = item.finish_reason
            return item
        except BaseException:  # Ctrl-C too, with which a round may be lost
            sequence.finish_reason = sequence.finish_reason or "error"
            text.let_go(text.token)
            raise
        finally:
            item = None  # an error holds this frame, and with it the engine

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():  # after a fork it is not
                arguments = self._inbox, weakref.ref(self)
                self._thread = threading.Thread(target=_serve, args=arguments, name="radar-engine", daemon=True)
                self._thread.start()
                weakref.finalize(self, _stop, self._inbox, self._thread)

    def step(self, arrived: list[_Text]) -> bool:
        """A step of the batch, for the thread. Returns whether there is more to do."""
        kept, batch = self._kept, self._batch
        for text in arrived:
            batch.add(text)
        started = time.perf_counter()
        try:
            with kept.taking_turn(), ambient(device := kept.model.device):
                kept.stepping = threading.get_ident()
                kept.order.follow(device)
                for stream in {text.stream for text in arrived if text.stream is not None}:
                    torch.cuda.current_stream(device).wait_stream(stream)
                batch.drop_closed()
                batch.step(self._tell, admit=self._is_current, check=self._check_adapters)
                if kept.made is None and not batch.holds_texts:
                    batch.engine = None  # who asks the decoder for its engine gets another one
        except BaseException as error:  # who reads gets it
            traceback.clear_frames(error.__traceback__)  # they hold the engine, and the next one takes as much memory
            kept.made = None
            batch.fail(error, self._tell)
        finally:
            kept.stepping = None
            kept.tally.seconds += time.perf_counter() - started
        return batch.has_work

    def _is_current(self) -> bool:
        """Whether a text may join; with no other text held, the engine is made to fit the model first."""
        kept, batch = self._kept, self._batch
        if batch.holds_texts:
            return not kept.has_changed and self._fingerprint() == self._print
        kept.has_changed = False
        self._adapters = ActiveAdapters(kept.model)
        if kept.made is not None and not kept.made.refresh():
            kept.made = None
        if kept.made is None:
            batch.engine = None  # its memory is free before the next one takes its own
        batch.engine = kept.engine
        self._print = self._fingerprint()
        return True

    def _check_adapters(self) -> None:
        assert self._adapters is not None
        try:
            self._adapters.check()
        except UsageError:
            self._kept.made = None  # its pages may hold rows of both
            raise

    def _fingerprint(self) -> Fingerprint:
        model = self._kept.model
        with BoundModel.of(model).turn.taken():  # a thread that runs the model has hooks and forwards of ours on it
            return fingerprint(model)

    def _tell(self, text: _Text, item: Round | BaseException) -> None:
        if isinstance(item, Round):
            tally = self._kept.tally
            tally.num_generations += item.is_prefill
            tally.add(item)
            if item.logits is not None and item.logits.is_cuda:
                torch.cuda.current_stream(item.logits.device).synchronize()  # the reader's does not wait for it
        text.queue.put(Made(item, text.seconds))


def _serve(inbox: SimpleQueue[_Text | None], owner: weakref.ref[EngineThread]) -> None:
    """The thread. It holds the engine for a step at a time, so that it goes with the decoder and its last text."""
    has_work = False
    while True:
        arrived = _arrived(inbox, wait=not has_work)
        here = owner()
        if here is None or None in arrived:
            return
        has_work = here.step([text for text in arrived if text is not None])
        del here, arrived  # nothing is held while it sleeps


def _arrived(inbox: SimpleQueue[_Text | None], *, wait: bool) -> list[_Text | None]:
    """What the inbox holds; waits for the first if it is asked to."""
    arrived = [inbox.get()] if wait else []
    with suppress(Empty):
        while True:
            arrived.append(inbox.get_nowait())
    return arrived


def _stop(inbox: SimpleQueue[_Text | None], thread: threading.Thread) -> None:
    """The decoder and all of its texts are gone, or the program ends: torch should not be running then."""
    inbox.put(None)
    if thread is not threading.current_thread():
        thread.join(10)  # of a criterion that waits for ever the program does not
