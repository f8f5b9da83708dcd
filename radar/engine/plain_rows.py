"""A batch of rows that the target decodes alone, one token a pass: the baseline, with as many texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radar.engine.capture import Letter, Mailbox, capture, on_stream
from radar.engine.captured import Streams
from radar.engine.logprobs import Watch
from radar.engine.plain_steps import PlainSteps
from radar.engine.prefill import Prefill
from radar.engine.rehearsal import rehearse
from radar.engine.rows import RowsEngine
from radar.engine.sampler import Sampler
from radar.engine.width import Chunk, Text, widths
from radar.metrics import Round
from radar.target.model import TargetModel

__all__ = ["Passing", "PlainRows"]


def carried_of(rows: int) -> int:
    """Tokens of a prompt that a pass of so many rows takes along: what is left of those that cost no more, and 16 at
    the least."""
    return max(16, 64 - rows)


@dataclass(eq=False)
class Passing:
    """A token for each row under way: a `Flight`.

    Attributes:
        tokens: or what brings them.
        watch: log-probabilities on their way.
    """

    tokens: list[list[int]] | Letter
    watch: Watch

    def read(self) -> list[Round]:
        """See `Flight`."""
        made = [Round(row) for row in (self.tokens if isinstance(self.tokens, list) else self.tokens.read())]
        self.watch.tell(made)
        return made


class Tokens:
    """A token for each of so many rows, by Python or, with streams, as a graph.

    Args:
        steps: of these rows.
        streams: to capture on.
        prefill: of the prompts that a graph takes along.

    Attributes:
        carried: see `Width`.
    """

    def __init__(self, steps: PlainSteps, streams: Streams | None, prefill: Prefill) -> None:
        self._steps, self.carried = steps, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        if streams is not None:
            self.carried = carried_of(len(steps.active)) if len(steps.active) > 1 else 0
            self._alone = copy.copy(steps)  # what the graph leaves there nobody else overwrites
            on_stream(streams.round, self._alone.step)
            self._graph = capture(self._alone.step, streams.round)
            if self.carried:
                self._mixed = steps.carrying(prefill, self.carried)
                on_stream(streams.round, self._mixed.step)
                self._both = capture(self._mixed.step, streams.round)
            self._mailbox = Mailbox(steps.token)

    @property
    def rows(self) -> int:
        """How many."""
        return len(self._steps.active)

    def launch(self, texts: Sequence[Text], chunk: Chunk | None) -> Passing:
        """See `Width`."""
        if carries := chunk is not None and chunk.tokens <= self.carried:
            self._both.replay()
        elif chunk is not None:
            chunk.run()
        tokens: list[list[int]] | Letter
        if self._graph is None:
            self._set_window(texts)
            tokens, scored = self._steps.step().tolist(), self._steps.scored
        else:
            if not carries:
                self._graph.replay()
            tokens, scored = self._mailbox.send(), (self._mixed if carries else self._alone).scored
        return Passing(tokens, Watch(scored, (text.request for text in texts)))

    def may_follow(self, flight: Passing) -> bool:
        """See `Width`."""
        return True

    def by_host(self, texts: Sequence[Text], samplers: Sequence[Sampler]) -> list[Round]:
        """See `Width`."""
        self._set_window(texts)
        logits = self._steps.score()
        token = self._steps.choose(logits)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for row, (text, sampler) in enumerate(zip(texts, samplers, strict=False)):
            if text.request.processing is not None:
                token[row, 0], scores = text.request.processing.choose(sampler, logits[row, 0], text.ids)
                kept[row] = logits[row].float(), scores[None]
        self._steps.keep(token)
        made = [Round(row) for row in token.tolist()]
        for row, scores_of in kept.items():
            made[row].logits, made[row].scores = scores_of
        Watch(self._steps.scored, (text.request for text in texts)).tell(made)
        return made

    def _set_window(self, texts: Sequence[Text]) -> None:
        self._steps.target.cache.set_window(max(len(text.ids) + (text.first is not None) for text in texts))


class PlainRows(RowsEngine):
    """Plain decoding of the texts in the rows of a batch.

    Args:
        target: of one row more than texts, without taps.
        graphs: a pass is a CUDA graph.
    """

    def __init__(self, target: TargetModel, *, graphs: bool = False) -> None:
        steps = PlainSteps(target)
        super().__init__(steps, None, graphs=graphs, ahead=1, nodes=1)
        views = [steps.first(rows) for rows in widths(len(steps.active) - 1)]
        if graphs:
            rehearse(lambda: self._rehearse(views), target.device)
            self._streams = Streams(target.device)  # theirs as long as the graphs live
            self.capture_prompts(self._streams)
        self.widths = [Tokens(view, self._streams if graphs else None, self._prefill) for view in views]
        self.forget()

    def _rehearse(self, views: Sequence[PlainSteps]) -> None:
        self.rehearse_prompts()
        for view in views:
            view.step()
            if len(view.active) > 1:
                view.carrying(self._prefill, carried_of(len(view.active))).step()
        self.forget()
