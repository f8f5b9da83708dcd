"""The baseline's runner: the target alone, one token a pass, driven by the host or as one graph a token."""

from __future__ import annotations

import copy

import torch

from radar.engine.admission import Admission
from radar.engine.base import EngineRequest, Processing
from radar.engine.capture import Mailbox, capture, capture_each, on_stream
from radar.engine.captured import Streams
from radar.engine.logprobs import Watch
from radar.engine.plain_steps import PlainSteps
from radar.engine.rehearsal import rehearse
from radar.metrics import Round, Stopwatch
from radar.target.model import TargetModel

__all__ = ["PlainEngine"]


class PlainEngine:
    """Plain decoding through the same cache, attention, sampler and graphs as rounds have.

    Args:
        target: without taps.
        graphs: make a pass one CUDA graph.

    Attributes:
        name: "graph" or "eager".
        steps: of a token.
        admission: takes prompts; its `prefix` is the text in the cache.
    """

    def __init__(self, target: TargetModel, *, graphs: bool) -> None:
        self.name = "graph" if graphs else "eager"
        self.target = target
        self.steps = PlainSteps(target)
        self.admission = Admission(target, None, self.steps.sampler)
        self._requests: list[EngineRequest] = []  # the one in hand
        self._graph: torch.cuda.CUDAGraph | None = None
        self._launched = False
        if graphs:
            rehearse(self._rehearsal, target.device)
            prefill, self._streams = self.admission.prefill, Streams(target.device)
            self.admission.chunks = capture_each(prefill.chunk, prefill.sizes, stream := self._streams.round)
            self._captured = copy.copy(self.steps)  # what the graph leaves there nobody else overwrites
            on_stream(stream, self._captured.step)
            self._graph = capture(self._captured.step, stream)
            self._mailbox = Mailbox(self.steps.token)

    def refresh(self) -> bool:
        """See `Engine`."""
        return self.admission.refresh()

    def admit(self, request: EngineRequest) -> Round:
        """See `Engine`."""
        self._launched = False
        self._requests = [request]
        result = self.admission.admit(request)
        self.steps.token.copy_(self.admission.token)
        return result

    def release(self) -> None:
        """See `Engine`."""
        self._requests = []

    def launch_next(self) -> None:
        """See `Engine`."""
        if self._graph is not None and not self._launched and self._processing is None:
            self._launched = True
            self._graph.replay()
            self._mailbox.send()
            self._watch = Watch(self._captured.scored, self._requests)

    def round(self) -> Round:
        """One token."""
        watch, result, prefix, steps = Stopwatch(), Round([]), self.admission.prefix, self.steps
        if (processing := self._processing) is not None:
            self.target.cache.set_window(len(prefix.ids))
            chosen, scores = processing.choose(steps.sampler, (logits := steps.score())[0, 0], prefix.ids)
            steps.keep(torch.tensor([[chosen]], device=self.target.device))
            result.logits, result.scores = logits[0].float(), scores[None]
            result.tokens = [chosen]
        elif self._graph is not None:
            self.launch_next()
            result.tokens = self._mailbox.read()[0]
            self._launched = False
        else:
            self.target.cache.set_window(len(prefix.ids))
            result.tokens = steps.step()[0].tolist()
        if self._graph is None or processing is not None:
            self._watch = Watch(steps.scored, self._requests)
        self._watch.tell([result])
        prefix.add(result.tokens, pending=0)
        watch.lap("verify")
        result.seconds = watch.seconds
        return result

    @property
    def _processing(self) -> Processing | None:
        return self._requests[0].processing if self._requests else None

    def _rehearsal(self) -> None:
        self.admission.rehearse()
        self.steps.step()
