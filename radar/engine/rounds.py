"""Rounds of so many rows: called from Python, or as graphs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from radar.draft.tree import VerifyTree
from radar.engine.budget import carried_of
from radar.engine.capture import Letter
from radar.engine.captured import CapturedPlain, Streams, capture_plain, capture_round
from radar.engine.fallback import Fallback
from radar.engine.logprobs import Watch
from radar.engine.prefill import Prefill
from radar.engine.sampler import Sampler
from radar.engine.scored import Scored
from radar.engine.steps import RoundSteps
from radar.engine.width import Chunk, Text
from radar.metrics import Round
from radar.policy.base import StopPolicy

__all__ = ["Flying", "RoundGraphs", "Rounds"]


@dataclass(eq=False)
class Flying:
    """A round, or a plain step, under way: a `Flight`.

    Attributes:
        rounds: whose it is.
        texts: in the first rows.
        drafted: it is no plain step.
        is_slowed: by what it does beside, so that its time says nothing.
        started: by `time.perf_counter`.
        letter: brings what came of it; None: `rows` and `seconds` are known.
        rows, seconds: what came of it, and in which time behind the last one; None: not known, the host came late for
            it or for that one.
        watch: log-probabilities on their way.
    """

    rounds: Rounds
    texts: list[Text]
    drafted: bool
    is_slowed: bool
    started: float
    letter: Letter | None = None
    rows: list[list[int]] = field(default_factory=list)
    seconds: float | None = None
    watch: Watch = field(init=False)

    def read(self) -> list[Round]:
        """See `Flight`."""
        return self.rounds.made_of(self)


class Rounds:
    """Rounds and plain steps of so many rows, called from Python.

    Args:
        steps: of these rows.
        policy: decides.
        fallback: chooses between rounds and plain steps; None: rounds alone.

    Attributes:
        carried: see `Width`.
        catches_up: the round launched last is a plain step, since more pairs wait than a first draft call takes.
    """

    carried = 0
    _settled: bool | None  # whether the next one drafts

    def __init__(self, steps: RoundSteps, policy: StopPolicy, fallback: Fallback | None) -> None:
        self.steps, self.fallback = steps, fallback
        self.catches_up = False
        self.decide_by(policy)

    def decide_by(self, policy: StopPolicy) -> None:
        """Take another policy, while no row holds a text."""
        self.steps.policy, self._settled = self.steps.bind(policy), None
        if self.fallback is not None:
            self.fallback.forget_rounds()

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.steps.active)

    def launch(self, texts: Sequence[Text], chunk: Chunk | None) -> Flying:
        """Start a round, or a plain step where those are faster, and take a chunk of a prompt in."""
        waiting = max(text.pending for text in texts)
        self.catches_up = waiting > self.steps.pairs  # of a round of fewer rows, or of plain steps
        wanted, self._settled = self._drafts() if self._settled is None else self._settled, None
        drafted = wanted and not self.catches_up
        full = self.catches_up or waiting == self.steps.config.max_accepted
        carries, is_slowed = False, chunk is not None or (wanted and self.catches_up)
        if chunk is not None:
            carries = drafted and chunk.tokens <= self.carried
            if not carries:
                chunk.run()
        flying = Flying(self, list(texts), drafted, is_slowed, time.perf_counter())
        self._set_windows(max(len(text.ids) + (text.first is not None) for text in texts))
        scored = self._start(flying, full and not drafted, carries)
        flying.watch = Watch(scored, (text.request for text in texts))
        for text in texts:  # pairs that wait, but for those that this round makes
            text.pending = 0 if full or drafted else text.pending
        return flying

    def may_follow(self, flight: Flying) -> bool:
        """See `Width`."""
        self._settled = self._drafts()
        return self._settled and flight.drafted  # or it would have to be known how many pairs wait

    def _drafts(self) -> bool:
        return self.fallback is None or self.fallback.drafts

    def made_of(self, flying: Flying) -> list[Round]:
        """See `Flight`."""
        if flying.drafted:
            made = [self._round_of(*row) for row in flying.rows]
        else:
            made = [Round(row, is_fallback=True) for row in flying.rows]
        flying.watch.tell(made)
        for text, item in zip(flying.texts, made, strict=False):
            text.pending = len(item.tokens) + (0 if flying.drafted else text.pending)
        if self.fallback is not None and not flying.is_slowed:
            tokens = [len(item.tokens) for item in made[: len(flying.texts)]]
            self.fallback.record(sum(tokens) / len(tokens), flying.seconds, drafted=flying.drafted)
        return made

    def by_host(self, texts: Sequence[Text], samplers: Sequence[Sampler]) -> list[Round]:
        """See `Width`."""
        steps = self.steps
        self._set_windows(max(len(text.ids) for text in texts))
        steps.draft()
        steps.select()
        logits = steps.score()
        tokens = steps.choose(logits)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for row, (text, sampler) in enumerate(zip(texts, samplers, strict=False)):
            if text.request.processing is not None:
                nodes, scores = self._of_row(row, logits)
                chosen, *own = text.request.processing.walk(sampler, nodes, scores, text.ids)
                tokens[row, : chosen.shape[1]], kept[row] = chosen[0], (own[0], own[1])
        steps.accept(tokens)
        made = [self._round_of(*row) for row in steps.commit().tolist()]
        steps.settle()
        for row, found in kept.items():
            made[row].logits, made[row].scores = found
        Watch(steps.scored, (text.request for text in texts)).tell(made)
        for text, item in zip(texts, made, strict=False):
            text.pending = len(item.tokens)
        return made

    def _of_row(self, row: int, logits: Tensor) -> tuple[VerifyTree, Tensor]:
        """One row's tree [1, n], and of what `score` returned what is its [1, n, V]."""
        tree, share = self.steps.nodes, self.steps.share
        if share is None:
            return VerifyTree(*(part[row : row + 1] for part in tree)), logits[row : row + 1]
        start, end = share.starts[row : row + 2].tolist()
        return VerifyTree(*(x[row : row + 1, : end - start] for x in tree)), logits[start:end].transpose(0, 1)

    def _round_of(self, calls: int, drafted: int, accepted: int, *tokens: int) -> Round:
        return Round(list(tokens[: accepted + 1]), calls, accepted, num_draft_tokens=drafted)

    def _set_windows(self, length: int) -> None:
        steps = self.steps
        steps.target.cache.set_window(length + steps.most_nodes)
        steps.drafter.cache.set_window(length + steps.drafter.num_scratch_rows)

    def _start(self, flying: Flying, catch_up: bool, carries: bool) -> Scored | None:
        steps = self.steps
        if catch_up:
            steps.catch_up()
        if flying.drafted:
            steps.draft()
            flying.rows = steps.finish().tolist()
        else:
            flying.rows = steps.plain().tolist()
        flying.seconds = time.perf_counter() - flying.started
        return steps.scored


class RoundGraphs(Rounds):
    """The same as graphs, which run while the host deals with the last ones' results.

    Args:
        streams: to capture on.
        conditional: the draft loop is a WHILE node; False: the host reads its flags.
        prefill: of the prompts that rounds take along.
    """

    def __init__(
        self,
        steps: RoundSteps,
        policy: StopPolicy,
        fallback: Fallback | None,
        streams: Streams,
        *,
        conditional: bool,
        prefill: Prefill,
    ) -> None:
        self._streams, self._conditional, self._prefill = streams, conditional, prefill
        self.carried = min(carried_of(len(steps.active)), max(prefill.sizes))
        self._plain: CapturedPlain | None = None
        self._ended = self._unknown_until = 0.0  # the last round that was read; when one had ended before it was read
        super().__init__(steps, policy, fallback)

    def decide_by(self, policy: StopPolicy) -> None:
        """See `Rounds`; captures, for which the steps run."""
        super().decide_by(policy)
        torch.cuda.synchronize(self.steps.target.device)  # a round that nobody read may still run
        self.steps.count.fill_(1)  # as in a round, whatever was captured before
        how = policy, self.steps.policy, self._streams
        self._round = capture_round(self.steps, *how, conditional=self._conditional)
        self.steps.count.fill_(1)
        if self.carried:
            both = self.steps.carrying(self._prefill, self.carried)
            self._both = capture_round(both, *how, conditional=self._conditional)
            self.steps.count.fill_(1)
        if self._plain is None and (self.fallback is not None or self.steps.pairs < self.steps.config.max_accepted):
            self._plain = capture_plain(self.steps, self._streams)
            if self.fallback is not None:
                self.steps.count.zero_()  # each step leaves a pair
                self.fallback.expect(self._plain.time(min(4, self.steps.config.max_calls)))

    def _start(self, flying: Flying, catch_up: bool, carries: bool) -> Scored | None:
        if flying.drafted:
            captured = self._both if carries else self._round
            captured.replay()
            box, steps = captured.result, captured.steps
        else:
            assert self._plain is not None
            if catch_up:
                self._plain.catch_up.replay()
            self._plain.step.replay()
            box, steps = self._plain.result, self._plain.steps
        flying.letter = box.send()
        return steps.scored

    def may_follow(self, flight: Flying) -> bool:
        """See `Width`. A loop of the host waits for its flags, and with them for the round before."""
        return super().may_follow(flight) and self._conditional

    def made_of(self, flying: Flying) -> list[Round]:
        """See `Flight`."""
        assert flying.letter is not None
        late = flying.letter.has_come  # how long it took cannot be told from when it is read
        flying.rows = flying.letter.read()
        now, known = time.perf_counter(), flying.started >= self._unknown_until
        flying.seconds = now - max(flying.started, self._ended) if known and not late else None
        self._ended, self._unknown_until = now, now if late else self._unknown_until
        return super().made_of(flying)
