"""The graph engine's host side on a CPU: a graph's replay runs its Python again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from radar import RadarDecoder
from radar.engine import capture as capture_module
from radar.engine import captured, graph, plain, plain_rows, round_rows, rows
from radar.engine.fallback import Fallback
from radar.target.cache import StaticKVCache
from radar.target.pages import PagedKVCache


class _Event:
    """Never done before it is asked for, as if the host always waited."""

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return False


def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines on a CPU have graphs that are Python."""

    class Letter(capture_module.Letter):
        has_come = False  # as if the host always waited

        def __init__(self, tensor: torch.Tensor) -> None:
            self.source, self.sent = tensor, None

        def send(self) -> None:
            self.sent = self.source.tolist()

        def read(self) -> Any:
            assert self.sent is not None
            value, self.sent = self.sent, None
            return value

    monkeypatch.setattr(capture_module, "Letter", Letter)

    def capture(work: Any, stream: object, *, generator: object = None) -> Any:
        return SimpleNamespace(replay=work)

    for name, fake in (("Stream", lambda *_: None), ("Event", _Event)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    # as on a card, where the window is the whole cache: the host sets others between graphs
    for cache in (StaticKVCache, PagedKVCache):
        monkeypatch.setattr(cache, "set_window", lambda self, rows: setattr(self, "_window", self.capacity))
    monkeypatch.setattr(plain_rows, "capture", capture)
    monkeypatch.setattr(plain_rows, "on_stream", lambda stream, work: work())
    monkeypatch.setattr(captured, "capture", capture)
    monkeypatch.setattr(captured, "on_stream", lambda stream, work: work())
    for engine in (graph, rows, plain):
        monkeypatch.setattr(engine, "capture_each", lambda work, values, stream: {n: partial(work, n) for n in values})


class _Conditional:
    """A node that the host decides, by what stands in `handle` when it is reached."""

    def __init__(self, *_: object) -> None:
        self.handle, self._armed = torch.zeros(1, dtype=torch.int64), False

    def open(self) -> None:
        assert self._armed
        self.handle.zero_()

    def arm(self) -> None:
        self._armed = True


class _WhileLoop(_Conditional):
    def capture(self, body: Callable[[], None]) -> None:
        while self.handle:
            body()


class _Switch(_Conditional):
    def capture(self, bodies: Sequence[Callable[[], None]]) -> None:
        bodies[int(self.handle)]()


def fake_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the graphs of `fake_graphs` have conditional nodes."""

    def go_on(stop: torch.Tensor, calls: torch.Tensor, handle: torch.Tensor, *, max_calls: int) -> None:
        handle.fill_(bool((~stop & (calls < max_calls)).any()))

    def choose(chosen: torch.Tensor, handle: torch.Tensor) -> None:
        handle.copy_(chosen)

    monkeypatch.setattr(graph, "why_no_while_nodes", lambda device: None)
    monkeypatch.setattr(round_rows, "why_no_while_nodes", lambda device: None)
    for name in ("load_graph_condition", "load_graph_choice"):
        monkeypatch.setattr(captured, name, lambda *_, **__: None)
    for module in (captured, graph):
        monkeypatch.setattr(module, "set_graph_condition", go_on)
        monkeypatch.setattr(module, "set_graph_choice", choose)
    monkeypatch.setattr(captured, "WhileLoop", _WhileLoop)
    monkeypatch.setattr(captured, "Switch", _Switch)


def with_fake_graphs(
    monkeypatch: pytest.MonkeyPatch,
    decoder: RadarDecoder,
    fallback: Fallback | None = None,
    *,
    conditional: bool = False,
) -> Any:
    """Give a decoder on a CPU a `GraphEngine` whose graphs are Python; returns the decoder."""
    fake_graphs(monkeypatch)
    if conditional:
        fake_conditions(monkeypatch)
    old = decoder.engine
    with torch.inference_mode():
        engine = graph.GraphEngine(old.target, old.drafter, old.policy, old.config, fallback=fallback)
    decoder._kept.made = engine
    return decoder
