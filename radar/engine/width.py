"""The rounds of the first rows of a batch: their steps, called from Python or captured as graphs."""

from __future__ import annotations

import time

import torch

from radar.engine.captured import CapturedPlain, Streams, capture_plain, capture_round
from radar.engine.fallback import Fallback
from radar.engine.steps import RoundSteps
from radar.policy.base import StopPolicy

__all__ = ["GraphWidth", "Width", "nodes_of", "widths"]

NODES = 192
"""Of all rows together: up to about as many, a verification waits for the weights and not for the rows
(shared by bench/results/round/costs_llama_h200.json)."""


def widths(rows: int) -> list[int]:
    """Numbers of rows that rounds are made for: the smallest that holds all texts is taken."""
    return [*(2**i for i in range(rows.bit_length()) if 2**i < rows), rows]


def nodes_of(total_tokens: int, rows: int) -> int:
    """Nodes of a row's tree where `rows` share a verification."""
    return max(2, min(total_tokens, NODES // rows))


class Width:
    """Rounds and plain steps of so many rows, called from Python.

    Args:
        steps: of these rows.
        policy: decides.
        fallback: chooses between rounds and plain steps; None: rounds alone.

    Attributes:
        steps: as given.
    """

    def __init__(self, steps: RoundSteps, policy: StopPolicy, fallback: Fallback | None) -> None:
        self.steps, self.fallback = steps, fallback
        self.decide_by(policy)

    def decide_by(self, policy: StopPolicy) -> None:
        """Take another policy, while no row holds a text."""
        self.steps.policy = self.steps.bind(policy)
        if self.fallback is not None:
            self.fallback.forget_rounds()

    def launch(self, *, texts: int, pending: int, length: int) -> bool:
        """Start a round, or a plain step where those are faster.

        Args:
            texts: rows that hold one.
            pending: pairs that wait for the next draft call, at most, in any row.
            length: of the longest text.

        Returns:
            Whether no pair waits any longer but those that it makes.
        """
        self._texts, self._drafted = texts, self.fallback is None or self.fallback.drafts
        catch_up = not self._drafted and pending == self.steps.config.max_accepted
        self._started = time.perf_counter()
        self._start(catch_up, length)
        return self._drafted or catch_up

    def read(self) -> list[list[int]]:
        """Of each row the draft calls, the draft tokens accepted, and tokens, of which accept_length + 1 count; a plain
        step makes no calls."""
        made, seconds = self._take()
        if not self._drafted:
            made = [[0, 0, *row] for row in made]
        if self.fallback is not None:
            self.fallback.record(sum(row[1] + 1 for row in made[: self._texts]), seconds)
        return made

    def _start(self, catch_up: bool, length: int) -> None:
        steps = self.steps
        steps.target.cache.set_window(length + steps.config.total_tokens)
        steps.drafter.cache.set_window(length + steps.drafter.num_scratch_rows)
        if catch_up:
            steps.catch_up()
        if self._drafted:
            steps.draft()
            self._made = steps.finish().tolist()
        else:
            self._made = steps.plain().tolist()
        self._seconds = time.perf_counter() - self._started

    def _take(self) -> tuple[list[list[int]], float | None]:
        return self._made, self._seconds


class GraphWidth(Width):
    """The same as graphs, which run while the host deals with what the last ones made.

    Args:
        streams: to capture on.
        conditional: the draft loop is a WHILE node; False: the host reads its flags.
    """

    def __init__(
        self,
        steps: RoundSteps,
        policy: StopPolicy,
        fallback: Fallback | None,
        streams: Streams,
        *,
        conditional: bool,
    ) -> None:
        self._streams, self._conditional = streams, conditional
        self._plain: CapturedPlain | None = None
        self._done = torch.cuda.Event()
        super().__init__(steps, policy, fallback)

    def decide_by(self, policy: StopPolicy) -> None:
        """See `Width`; captures, for which the steps run."""
        super().decide_by(policy)
        torch.cuda.synchronize(self.steps.target.device)  # a round that nobody read may still run
        self.steps.count.fill_(1)  # as in a round, whatever was captured before
        self._round = capture_round(self.steps, policy, self.steps.policy, self._streams, conditional=self._conditional)
        if self._plain is None and self.fallback is not None:
            self._plain = capture_plain(self.steps, self._streams)

    def _start(self, catch_up: bool, length: int) -> None:
        if self._drafted:
            self._round.replay()
            self._box = self._round.result
        else:
            assert self._plain is not None
            if catch_up:
                self._plain.catch_up.replay()
            self._plain.step.replay()
            self._box = self._plain.result
        self._box.send()
        self._done.record()

    def _take(self) -> tuple[list[list[int]], float | None]:
        late = self._done.query()  # how long it took cannot be told from when it is read
        made = self._box.read()
        return made, None if late else time.perf_counter() - self._started
