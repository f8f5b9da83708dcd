"""The engine of several texts at once: rows join and leave between rounds, and draft as deep as their own verdicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.base import EngineRequest
from radar.engine.capture import Mailbox, capture_each
from radar.engine.captured import Streams
from radar.engine.conditional import why_no_while_nodes
from radar.engine.fallback import Fallback
from radar.engine.prefill import Prefill
from radar.engine.rehearsal import rehearse
from radar.engine.sampler import Sampler
from radar.engine.steps import RoundSteps
from radar.engine.width import GraphWidth, Width, nodes_of, widths
from radar.metrics import Round
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel

__all__ = ["RowsEngine"]


@dataclass(eq=False)
class Text:
    """What the host knows of a row.

    Attributes:
        key, request: of the caller.
        ids: prompt and output so far.
        pending: pairs that wait for a draft call.
        is_entering: the first token is on its way to the host.
        has_left: what is still made for it is for nobody.
    """

    key: Hashable
    request: EngineRequest
    ids: list[int]
    pending: int = 1
    is_entering: bool = True
    has_left: bool = False


class RowsEngine:
    """Rounds for the texts in the rows of a batch; see `BatchEngine`.

    Texts stand in the first rows: when one leaves, the last one takes its row. What a text says is what it would say
    alone, since its tree, its noise and its attention depend on itself. A prompt is taken in at a row of its own behind
    the others, by the same chunks and graphs as one alone, and moves when it is complete.

    Args:
        target, drafter: of one row more than texts, on one device.
        policy: decides for each row.
        config: shape of the trees; where many rows share a verification they have fewer nodes each (`nodes_of`).
        graphs: rounds are CUDA graphs.
        fallback: take plain steps where drafting does not pay.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter,
        policy: StopPolicy,
        config: TreeConfig,
        *,
        graphs: bool = False,
        fallback: bool = False,
    ) -> None:
        self.target, self.drafter, self.policy, self.config = target, drafter, policy, config
        self.name = "graph" if graphs else "eager"
        self.steps = RoundSteps(target, drafter, policy, config)
        self._capacity = door = len(target.cache.length) - 1
        self._samplers = [self.steps.sampler.row(row) for row in range(door + 1)]
        self._prefill = Prefill(target.row(door), drafter.row(door))
        self._chunks: dict[int, Callable[[], object]] | None = None
        self._texts: list[Text] = []  # by row
        self._launched: tuple[Width, list[Text]] | None = None
        self._prints = [target.refresh(), drafter.refresh()]
        self.steps.active.zero_()
        self._bound = policy
        self._make_widths(graphs, fallback)

    def _make_widths(self, graphs: bool, fallback: bool) -> None:
        steps, device = self.steps, self.target.device
        views = [steps.first(rows, nodes_of(self.config.total_tokens, rows)) for rows in widths(self._capacity)]
        rules = [Fallback() if fallback else None for _ in views]
        if not graphs:
            self._widths = [Width(view, self.policy, rule) for view, rule in zip(views, rules, strict=True)]
            return
        streams, conditional = Streams(device), why_no_while_nodes(device) is None
        for view in views:
            view.policy = view.bind(self.policy)
        rehearse(lambda: self._rehearse(views, fallback), device)
        self._chunks = capture_each(self._prefill.chunk, self._prefill.sizes, streams.round)
        self._widths = [
            GraphWidth(view, self.policy, rule, streams, conditional=conditional)
            for view, rule in zip(views, rules, strict=True)
        ]
        self._first = Mailbox(steps.root[:, None])
        self._forget()

    def _rehearse(self, views: list[RoundSteps], fallback: bool) -> None:
        for rows in self._prefill.sizes:
            self._prefill.chunk(rows)
        self._sample(self._samplers[0])
        for view in views:
            view.begin()
            view.stop()
            view.step()
            view.finish()
            if fallback:
                view.plain()
                view.catch_up()
        self._forget()

    def _forget(self) -> None:
        """No row holds a text."""
        self.target.cache.reset()
        self.drafter.reset()
        self.steps.count.fill_(1)
        self._prefill.count.fill_(1)
        self._prefill.known.zero_()

    @property
    def has_room(self) -> bool:
        """See `BatchEngine`."""
        return len(self._texts) < self._capacity

    def refresh(self) -> bool:
        """See `BatchEngine`."""
        now = [self.target.refresh(), self.drafter.refresh()]
        fits = [found.layout for found in now] == [known.layout for known in self._prints]
        self._prints = now
        return fits

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy once the rows are empty. Raises UsageError if it cannot serve the tree."""
        self.steps.bind(policy)
        self.policy = policy

    def admit(self, key: Hashable, request: EngineRequest) -> Iterator[Round | None]:
        """See `BatchEngine`."""
        if not self._texts and self._bound is not self.policy:
            self._bound = self.policy
            for width in self._widths:
                width.decide_by(self.policy)
            self._forget()
        prompt, prefill = request.input_ids, self._prefill
        ids = torch.tensor([prompt], device=self.target.device)
        for _ in prefill.chunked(ids, self._chunks):
            yield None
        row, result = len(self._texts), Round([], is_prefill=True, num_prompt_tokens=len(prompt))
        sampler = self._samplers[row]
        sampler.set(request.sampling)
        sampler.start(ids)  # now: rounds of other rows leave something in every row's history
        if request.processing is None:
            token = self._sample(sampler)
        else:
            chosen, scores = request.processing.choose(sampler, prefill.logits[0], prompt)
            token = torch.tensor([[chosen]], device=self.target.device)
            result.logits, result.scores = prefill.logits.float(), scores[None]
        sampler.commit(token, torch.ones_like(token[:, 0]))
        self.target.cache.move(self._capacity, row, len(prompt))
        self.drafter.cache.move(self._capacity, row, len(prompt))
        self.steps.load(token, prefill.taps, row)
        self.steps.active[row] = True
        text = Text(key, request, list(prompt))
        self._texts.append(text)  # its first round may start before the host knows its first token
        if self._chunks is not None:
            self._first.send()
            yield None
            result.tokens = self._first.read()[row]
        else:
            result.tokens = token[0].tolist()
        text.ids += result.tokens
        text.is_entering = False
        yield result

    def _sample(self, sampler: Sampler) -> Tensor:
        prefill = self._prefill
        return sampler.sample(prefill.logits[:, None], prefill.target.cache.length[:, None])

    def launch_next(self) -> None:
        """See `BatchEngine`."""
        texts = self._texts
        if self._launched is not None or not texts or any(text.request.processing for text in texts):
            return
        width = self._width()
        length = max(len(text.ids) + 1 for text in texts)
        caught_up = width.launch(texts=len(texts), pending=max(text.pending for text in texts), length=length)
        if caught_up:
            for text in texts:
                text.pending = 0
        self._launched = width, list(texts)

    def _width(self) -> Width:
        return next(width for width in self._widths if len(width.steps.active) >= len(self._texts))

    def round(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        if self._launched is None and any(text.is_entering for text in self._texts):
            return {}  # its first token comes before its first round
        self.launch_next()
        if self._launched is None:
            return self._by_host()
        (width, texts), self._launched = self._launched, None
        made = {}
        for text, (calls, accepted, *tokens) in zip(texts, width.read(), strict=False):
            if text.has_left:
                continue
            tokens = tokens[: accepted + 1]
            text.pending = len(tokens) if calls else text.pending + 1  # a plain step adds one
            drafted = width.steps.num_drafted(calls) if calls else 0
            made[text.key] = Round(tokens, calls, accepted, num_draft_tokens=drafted, is_fallback=not calls)
            text.ids += tokens
        return made

    def _by_host(self) -> dict[Hashable, Round]:
        """A round in which processors on the host choose the tokens of some rows."""
        steps, texts = self._width().steps, self._texts
        length = max(len(text.ids) for text in texts)
        steps.target.cache.set_window(length + steps.config.total_tokens)
        steps.drafter.cache.set_window(length + steps.drafter.num_scratch_rows)
        steps.draft()
        steps.select()
        logits = steps.score()
        tokens = steps.choose(logits)
        kept = {}
        for row, text in enumerate(texts):
            if text.request.processing is not None:
                nodes = type(steps.nodes)(*(part[row : row + 1] for part in steps.nodes))
                sampler, own = self._samplers[row], logits[row : row + 1]
                tokens[row], *kept[row] = text.request.processing.walk(sampler, nodes, own, text.ids)
        steps.accept(tokens)
        made = {}
        for row, (text, (calls, accepted, *new)) in enumerate(zip(texts, steps.commit().tolist(), strict=False)):
            result = Round(new[: accepted + 1], calls, accepted, num_draft_tokens=steps.num_drafted(calls))
            result.logits, result.scores = kept.get(row, (None, None))
            text.ids += result.tokens
            text.pending = len(result.tokens)
            made[text.key] = result
        steps.settle()
        return made

    def release(self, key: Hashable) -> None:
        """See `BatchEngine`."""
        row = next((row for row, text in enumerate(self._texts) if text.key == key), None)
        if row is None:  # its prompt was not in yet
            return
        self._texts[row].has_left = True
        last = self._texts.pop()
        if row < len(self._texts):
            self._texts[row] = last
            ahead = self.config.max_accepted  # tokens of a round that the host has not read
            self.steps.move(len(self._texts), row, len(last.ids) + ahead)
        self.steps.active[len(self._texts)] = False
