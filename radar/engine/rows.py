"""The engine of several texts at once: rows join and leave between rounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import count
from operator import attrgetter

import torch
from torch import Tensor

from radar.draft.base import Drafter
from radar.engine.base import EngineRequest
from radar.engine.capture import capture_each
from radar.engine.captured import Streams
from radar.engine.first_tokens import FirstTokens
from radar.engine.prefill import Prefill
from radar.engine.saved_row import SavedRow
from radar.engine.scored import Scored
from radar.engine.shared_prompts import SharedPrompts
from radar.engine.upload import upload
from radar.engine.width import Chunk, Flight, RowSteps, Text, Width
from radar.metrics import Round
from radar.target.fingerprint import Fingerprint
from radar.target.pages import PagedKVCache

__all__ = ["RowsEngine"]

SHORT = 512  # tokens of a prompt that rounds take along, at most
SPARE = 2  # pages left to each text where a prompt is taken in before a row is free


class RowsEngine:
    """Takes prompts into rows, and makes rounds of all that hold a text; see `BatchEngine`.

    Texts stand in the first rows: when one leaves, the last one takes its row. What a text says is what it would say
    alone, since its tree, its noise and its attention depend on itself. A prompt is taken in at a row of its own behind
    the others, by chunks of its own or, where it is short, in the others' rounds, and moves when it is complete and a
    row is free.

    Args:
        steps: of one row more than texts.
        drafter: of as many; None: the target alone decodes.
        graphs: prompts run as CUDA graphs.
        ahead: tokens that a round adds at most.
        nodes: rows of the target's cache that a round writes at most.
    """

    def __init__(self, steps: RowSteps, drafter: Drafter | None, *, graphs: bool, ahead: int, nodes: int) -> None:
        self.name = "graph" if graphs else "eager"
        self.steps, self.target, self.drafter = steps, steps.target, drafter
        self.widths: list[Width] = []
        assert isinstance(steps.target.cache, PagedKVCache)  # of two rows at least
        self._pages = steps.target.cache
        self._ahead, self._nodes = ahead, nodes
        self._door = door = len(steps.active) - 1
        self._samplers = [steps.sampler.row(row) for row in range(door + 1)]
        self._prefill = Prefill(self.target.row(door), None if drafter is None else drafter.row(door))
        self._chunks: dict[int, Callable[[], object]] | None = None
        self._first = FirstTokens(steps.root, ahead=graphs)
        self._at_door = False  # a prompt that is half taken in holds pages
        self._offered: Chunk | None = None  # of it, for the next round
        self._texts: list[Text] = []  # by row
        self._aside: list[tuple[Text, SavedRow]] = []  # for which there are no pages, the oldest first
        self._numbers = count()
        self._launched: tuple[Width, list[Text], Flight] | None = None
        self._shared = SharedPrompts(self._pages, None if drafter is None else drafter.cache)
        self._prints = self._fingerprints()
        steps.active.zero_()

    def capture_prompts(self, streams: Streams) -> None:
        """Make graphs of a prompt's chunks."""
        self._chunks = capture_each(self._prefill.chunk, self._prefill.sizes, streams.round)

    def rehearse_prompts(self) -> None:
        """Launch what takes a prompt in."""
        for rows in self._prefill.sizes:
            self._prefill.chunk(rows)
        self._sample()

    def forget(self) -> None:
        """No row holds a text: behind work that was nobody's."""
        self.target.cache.reset()
        if self.drafter is not None:
            self.drafter.reset()
        self._prefill.forget()

    @property
    def free(self) -> int:
        """See `BatchEngine`."""
        return 0 if self._aside else self._door - len(self._texts)

    def refresh(self) -> bool:
        """See `BatchEngine`."""
        before, self._prints = self._prints, self._fingerprints()
        if self._prints != before:
            self._shared.forget()
        return [found.layout for found in self._prints] == [known.layout for known in before]

    def _fingerprints(self) -> list[Fingerprint]:
        return [part.refresh() for part in (self.target, self.drafter) if part is not None]

    def prepare(self) -> None:
        """Called when the first text comes to empty rows."""

    def admit(self, key: Hashable, request: EngineRequest, *, hurry: bool) -> Iterator[int]:
        """See `BatchEngine`."""
        if not self._texts:
            self._pages.publish()  # what is run to prepare would write to pages of texts that have left
            self.prepare()
        ids = upload([request.input_ids], self.target.device)
        left = len(request.input_ids)
        while left:
            while (start := self._open(request)) is None:
                yield 0
            left = len(request.input_ids) - start
            text = Text(key, request, next(self._numbers), list(request.input_ids))
            for taken in self._taken(ids, start, hurry):
                left -= taken
                if left == 0 and self._offered is None and self.free:
                    self._enter(text, ids, start)
                    yield taken
                    return
                yield taken
                while self._offered is not None or (left == 0 and self._at_door and not self.free):
                    yield 0
                if not self._at_door:  # older texts needed its pages
                    left = len(text.ids)
                    break
            else:
                self._enter(text, ids, start)

    def _taken(self, ids: Tensor, start: int, hurry: bool) -> Iterator[int]:
        """Take the prompt at the door in: at once, or what is short and can wait with the rounds of others."""
        carried = self._width().carried if self._texts and not hurry else 0
        chunks = self._chunks
        if chunks is None or not carried or ids.shape[1] - start > SHORT:
            yield from self._prefill.chunked(ids, chunks, start=start)
            return
        for tokens in self._prefill.staged(ids, min(carried, max(chunks)), start=start):
            self._offered = Chunk(tokens, chunks[min(rows for rows in chunks if rows >= tokens)])
            yield tokens

    def _open(self, request: EngineRequest) -> int | None:
        """Pages for a prompt and its first round, and how many tokens they hold already; None: there are too few."""
        door, prompt, pages = self._door, request.input_ids, self._pages
        if self._aside:
            return None
        start = self._shared.take(door, prompt) if request.reuse_prefix else 0
        spare = 0 if self.free else SPARE * len(self._texts)
        if not pages.reserve(door, len(prompt) + 1 + self._nodes, spare=spare):
            pages.free(door)
            return None
        pages.publish()
        self._at_door = True
        return start

    def _enter(self, text: Text, prompt: Tensor, reused: int) -> None:
        """Give the text whose prompt [1, P] is in a row, where rounds go on with it before the host knows a token."""
        request, prefill, door, row = text.request, self._prefill, self._door, len(self._texts)
        sampler, length = self._samplers[door], len(text.ids)
        first = text.first = Round([], is_prefill=True, num_prompt_tokens=length, num_reused_tokens=reused)
        sampler.set(request.sampling)
        sampler.start(prompt)
        if request.processing is None:
            token = self._sample()
        else:
            chosen, scores = request.processing.choose(sampler, prefill.logits[0], text.ids)
            token = torch.tensor([[chosen]], device=self.target.device)
            first.logits, first.scores = prefill.logits.float(), scores[None]
        sampler.commit(token, torch.ones_like(token[:, 0]))
        self.steps.load(token, prefill.taps, door)
        if request.reuse_prefix:
            self._shared.keep(door, text.ids)
        self.steps.state.move(door, row, length)
        self._at_door = False
        self.steps.active[row].fill_(True)  # `= True` would wait for the round under way
        self._texts.append(text)
        self._first.send(text, row, Scored(prefill.logits, torch.zeros_like(token), token))

    def entered(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        return self._first.take([*self._texts, *(text for text, _ in self._aside)])

    def _sample(self) -> Tensor:
        """The prompt's successor [1, 1], always at one place: kernels are compiled for where their arguments lie."""
        prefill = self._prefill
        return self._samplers[self._door].sample(prefill.logits[:, None], prefill.target.cache.length[:, None])

    def launch_next(self) -> None:
        """See `BatchEngine`."""
        if self._launched is not None:
            return
        self._make_room()
        self._launch()

    def _launch(self) -> None:
        texts, (chunk, self._offered) = self._texts, (self._offered, None)
        if texts and not self._goes_by_host:
            width = self._width()
            self._launched = width, list(texts), width.launch(texts, chunk)
        elif chunk is not None:
            chunk.run()

    @property
    def _goes_by_host(self) -> bool:
        return any(text.request.processing for text in self._texts)

    def _width(self) -> Width:
        return next(width for width in self.widths if width.rows >= len(self._texts))

    def round(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        if self._launched is None and any(text.first is not None for text in self._texts):
            return {}  # its first token comes before its first round
        self.launch_next()
        if not self._texts and self._launched is None:
            return {}
        if self._launched is None:
            texts, made = self._texts, self._width().by_host(self._texts, self._samplers)
        else:
            (width, texts, flight), self._launched = self._launched, None
            if self._may_follow(width, flight):  # behind it on the device, which does not wait for the host then
                self._launch()
            made = flight.read()
        found: dict[Hashable, Round] = {}
        for text, item in zip(texts, made, strict=False):
            if not text.has_left:
                text.ids += item.tokens
                found[text.key] = item
        if self._chunks is not None and len(self._texts) > 1:  # with one it is known at once whether it goes on
            self.launch_next()
        return found

    def _may_follow(self, width: Width, flight: Flight) -> bool:
        """Whether the next round can start before it is known what this one has made: with pages for all that it may
        be. A text that has ended has a round more than it needs then."""
        texts = self._texts
        if self._chunks is None or len(texts) < 2 or self._aside or self._goes_by_host or width is not self._width():
            return False
        if not self._pages.reserve_each([self._needed(text) + self._ahead for text in texts]):
            return False
        self._pages.publish()
        return width.may_follow(flight)

    def _make_room(self) -> None:
        """Give each text the pages of its next round; where there are too few, the newest wait until there are."""
        pages = self._pages
        if not self._aside and all(pages.reserve(row, self._needed(text)) for row, text in enumerate(self._texts)):
            pages.publish()
            return
        for text in sorted(self._texts, key=attrgetter("number")):
            while text in self._texts and not pages.reserve(self._texts.index(text), self._needed(text)):
                if self._at_door:  # newer than all of them
                    self._leave_door()
                    continue
                newest = max(self._texts, key=attrgetter("number"))
                self._first.know(newest)
                row = self._texts.index(newest)
                self._aside.append((newest, self.steps.state.save(row)))
                self._leave(row)
        self._aside.sort(key=lambda pair: pair[0].number)
        while self._aside and pages.reserve(row := len(self._texts), self._needed(self._aside[0][0])):
            text, saved = self._aside.pop(0)
            self.steps.state.restore(row, saved)
            self._texts.append(text)
        pages.publish()

    def _needed(self, text: Text) -> int:
        """Tokens that a text has to hold in its next round."""
        return len(text.ids) + (text.first is not None) + self._nodes

    def _leave(self, row: int) -> None:
        """The last text takes a row that is free now."""
        last = self._texts.pop()
        if row < len(self._texts):
            self._texts[row] = last
            # a round may be under way, whose tokens the host has not read
            self.steps.state.move(len(self._texts), row, len(last.ids) + self._ahead)
            if self._launched is None or last not in self._launched[1]:
                self._first.move(last, row)
        self._pages.free(len(self._texts))
        self.steps.active[len(self._texts)].fill_(False)

    def release(self, key: Hashable) -> None:
        """See `BatchEngine`."""
        aside, self._aside = self._aside, [pair for pair in self._aside if pair[0].key != key]
        row = next((row for row, text in enumerate(self._texts) if text.key == key), None)
        if row is not None:
            self._texts[row].has_left = True
            self._leave(row)
        elif len(aside) == len(self._aside):  # its prompt was not in yet
            self._leave_door()

    def _leave_door(self) -> None:
        self._pages.free(self._door)
        self._at_door, self._offered = False, None
