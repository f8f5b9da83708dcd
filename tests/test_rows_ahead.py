"""Rounds of several rows that start before it is known what the ones before them have made."""

from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from fake_graphs import fake_conditions, fake_graphs
from fakes import DEVICE
from test_rows_engine import Never, alone, make_batch, sequence_of

from radar import FixedDepth, SamplingParams
from radar.engine import budget, round_rows, rounds
from radar.engine.plain_rows import Passing
from radar.engine.rounds import Flying, RoundGraphs, Rounds
from radar.generation.request import Request
from radar_kernels.reference_canonical import PAGE

__all__ = ["alone"]


class Turns(Never):
    """One plain step and a round, two and a round, and so on to five."""

    def __init__(self):
        self._turns = cycle(kind for plain in range(1, 6) for kind in [*[False] * plain, True])

    @property
    def drafts(self):
        return next(self._turns)


@torch.inference_mode()
def test_a_round_behind_plain_steps_waits_until_it_is_known_how_many_pairs_wait(alone, monkeypatch):
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr(budget, "NODES", {1: 12})
    monkeypatch.setattr(budget, "CALLS", 12)
    batch, drafted, start = make_batch(4, FixedDepth(3), fallback=True, graphs=True), 0, RoundGraphs._start

    def looked_at(width, flying, catch_up, carries):
        nonlocal drafted
        drafted += flying.drafted
        assert not flying.drafted or int(width.steps.count.max()) <= width.steps.pairs
        return start(width, flying, catch_up, carries)

    monkeypatch.setattr(RoundGraphs, "_start", looked_at)
    for width in batch.engine.widths:
        width.fallback = Turns()
    requests = [Request([1, 2, 3 + row], 40, SamplingParams(), frozenset()) for row in range(4)]
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in requests]
    assert drafted > 3


@pytest.mark.parametrize(("policy", "on_device"), [(FixedDepth(3), True), (FixedDepth(3), False), (None, True)])
@torch.inference_mode()
def test_the_next_round_is_launched_before_the_last_one_is_waited_for(policy, on_device, monkeypatch):
    """With one text not before it is known to go on: it has no round that is for nobody. A loop of the host's would
    wait for the last one in the launch, and nobody would know how long that one took."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
        if on_device:
            fake_conditions(monkeypatch)
    elif not on_device:
        monkeypatch.setattr(round_rows, "why_no_while_nodes", lambda device: "they are left out")
    batch, flight = make_batch(2, policy, graphs=True), Flying if policy else Passing
    launched, read = [], flight.read
    monkeypatch.setattr(flight, "read", lambda self: launched.append(batch.engine._launched is not None) or read(self))
    for count in (1, 2):
        for number in range(count):
            batch.add(sequence_of(Request([1, 2, 3 + number], 12, SamplingParams(), frozenset())))
        launched.clear()
        while batch.has_work:
            batch.step()
        assert any(launched) == (count == 2 and on_device)
        assert count == 2 or batch.engine._launched is None


@torch.inference_mode()
def test_a_rounds_seconds_are_those_since_the_one_before_it(monkeypatch):
    """Where the host came late for that one nobody knows them."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    width, now = make_batch(2, FixedDepth(3), graphs=True).engine.widths[-1], 0.0
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(Rounds, "made_of", lambda self, flying: [])
    found = []
    for started, come, read in [(10, 0, 15), (11, 0, 21), (16, 1, 30), (22, 0, 33), (31, 0, 39), (50, 0, 56)]:
        letter = SimpleNamespace(has_come=bool(come), read=list)
        flying, now = Flying(width, [], drafted=True, is_slowed=False, started=started, letter=letter), read
        assert width.made_of(flying) == []
        found.append(flying.seconds)
    assert found == [5, 6, None, None, 6, 6]


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_a_round_that_is_launched_early_has_pages_for_whatever_comes_before_it(policy, monkeypatch):
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
        fake_conditions(monkeypatch)
    batch = make_batch(4, policy, graphs=True)
    engine = batch.engine
    for number in range(4):
        batch.add(sequence_of(Request([1, 2, 3 + number] * (10 + number), 40, SamplingParams(), frozenset())))
    made, early = engine.round, 0

    def looked_at():
        nonlocal early
        found = made()
        for row, text in enumerate(engine._texts if engine._launched else ()):
            early += 1
            assert PAGE * len(engine._pages.pool.held[row]) >= engine._needed(text)
        return found

    monkeypatch.setattr(engine, "round", looked_at)
    while batch.has_work:
        batch.step()
    assert early > 20
