"""The graph engine's host side on a CPU: a graph's replay runs its Python again."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from radar import RadarDecoder
from radar.engine import captured, first_tokens, graph, plain, plain_rows, rows
from radar.engine.fallback import Fallback
from radar.target.pages import PagedKVCache


class _Event:
    """Never done before it is asked for, as if the host always waited."""

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return False


def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines on a CPU have graphs that are Python."""

    class Mailbox:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.source, self.sent = tensor, None

        def send(self) -> None:
            self.sent = self.source.tolist()

        def read(self) -> Any:
            value, self.sent = self.sent, None
            return value

    def capture(work: Any, stream: object, *, generator: object = None) -> Any:
        return SimpleNamespace(replay=work)

    for name, fake in (("Stream", lambda *_: None), ("Event", _Event)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    # of rows, as on a card, where the window is the whole cache: the host sets others between graphs
    monkeypatch.setattr(PagedKVCache, "set_window", lambda self, rows: setattr(self, "_window", self.capacity))
    monkeypatch.setattr(captured, "Mailbox", Mailbox)
    for engine in (first_tokens, plain_rows):
        monkeypatch.setattr(engine, "Mailbox", Mailbox)
    monkeypatch.setattr(plain_rows, "capture", capture)
    monkeypatch.setattr(plain_rows, "on_stream", lambda stream, work: work())
    monkeypatch.setattr(captured, "capture", capture)
    monkeypatch.setattr(captured, "on_stream", lambda stream, work: work())
    for engine in (graph, rows, plain):
        monkeypatch.setattr(engine, "capture_each", lambda work, values, stream: {n: partial(work, n) for n in values})


def with_fake_graphs(monkeypatch: pytest.MonkeyPatch, decoder: RadarDecoder, fallback: Fallback | None = None) -> Any:
    """Give a decoder on a CPU a `GraphEngine` whose graphs are Python; returns the decoder."""
    fake_graphs(monkeypatch)
    old = decoder.engine
    with torch.inference_mode():
        engine = graph.GraphEngine(old.target, old.drafter, old.policy, old.config, fallback=fallback)
    decoder._kept.made = engine
    return decoder
