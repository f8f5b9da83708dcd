"""Rounds of several rows that start before it is known what the ones before them have made."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import DEVICE
from test_rows_engine import Never, alone, make_batch, sequence_of

from radar import FixedDepth, SamplingParams
from radar.engine import budget
from radar.engine.plain_rows import Tokens
from radar.engine.rounds import Flying, RoundGraphs
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

    def looked_at(rounds, flying, catch_up, carries):
        nonlocal drafted
        drafted += flying.drafted
        assert not flying.drafted or int(rounds.steps.count.max()) <= rounds.steps.pairs
        return start(rounds, flying, catch_up, carries)

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


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_the_next_round_is_launched_before_the_last_one_is_looked_at(policy, monkeypatch):
    """With one text not before it is known to go on: it has no round that is for nobody."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    batch, flight = make_batch(2, policy, graphs=True), Flying if policy else Tokens
    launched, read = [], flight.read
    monkeypatch.setattr(flight, "read", lambda self: launched.append(batch.engine._launched is not None) or read(self))
    for count in (1, 2):
        for number in range(count):
            batch.add(sequence_of(Request([1, 2, 3 + number], 12, SamplingParams(), frozenset())))
        launched.clear()
        while batch.has_work:
            batch.step()
        assert any(launched) == (count == 2)
        assert count == 2 or batch.engine._launched is None


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_a_round_that_is_launched_early_has_pages_for_whatever_comes_before_it(policy, monkeypatch):
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
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


def requests_of(count, length=40, tokens=12):
    prompt = [7 * place % 17 for place in range(length - 1)]
    return [Request([*prompt, number], tokens, SamplingParams(), frozenset()) for number in range(count)]


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_a_prompt_waits_at_the_door_while_all_rows_are_full(policy, alone, monkeypatch):
    """It is in the first round that is launched behind the one that ended another: no row is empty in a second."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr(budget, "NODES", {1: 12})
    monkeypatch.setattr(budget, "CARRIED", {2: 16})
    batch = make_batch(2, policy, graphs=True)
    engine, launch, launched = batch.engine, batch.engine._launch, []

    def seen():
        launched.append(sum(not text.has_left for text in engine._texts) if engine._texts else 0)
        launch()

    enter, entered = engine._enter, []
    monkeypatch.setattr(engine, "_launch", seen)
    monkeypatch.setattr(engine, "_enter", lambda *args: entered.append(True) or enter(*args))
    requests = [replace(request, limit=30 + 9 * number) for number, request in enumerate(requests_of(8))]
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    waited = 0
    while batch.has_work:
        entered.clear()
        batch.step()
        assert not (entered and engine._at_door)  # one thing a step: the device waits for neither
        waited += engine._at_door and not engine.free
        if sum(sequence.has_ended for sequence in sequences) == 6:
            break  # nobody waits any more
    first = launched.index(2)
    assert launched[first:].count(2) == len(launched) - first, launched
    assert waited > 10
    while batch.has_work:
        batch.step()
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in requests]


@torch.inference_mode()
def test_a_prompt_at_the_door_can_be_given_up(alone):
    """Its pages are free again, and the next one takes its place."""
    batch = make_batch(2, FixedDepth(3), graphs=DEVICE.type == "cuda")
    sequences = [sequence_of(request) for request in requests_of(4, tokens=60)]
    for sequence in sequences:
        batch.add(sequence)
    pool = batch.engine._pages.pool
    while not (batch.engine._at_door and not batch.engine.free):
        batch.step()
    assert pool.held[2]
    sequences[2].close()
    while not sequences[3].has_ended:
        batch.step()
        assert sequences[2].token_ids == []
    while batch.has_work:
        batch.step()
    assert pool.available == len(pool._users) - 1
    for sequence in (*sequences[:2], sequences[3]):
        assert sequence.token_ids == alone(sequence.request)


@torch.inference_mode()
def test_a_prompt_is_not_taken_in_ahead_of_a_row_where_pages_are_scarce(alone):
    batch = make_batch(2, FixedDepth(3), cache_tokens=5 * PAGE + 256, graphs=DEVICE.type == "cuda")
    engine, full, taken = batch.engine, 0, 0
    sequences = [sequence_of(request) for request in requests_of(6, length=150, tokens=60)]
    for sequence in sequences:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
        full += not engine.free and bool(engine._texts)
        taken += engine._at_door and not engine.free
        assert not engine._aside
    assert full > 20
    assert taken == 0
    assert [sequence.token_ids for sequence in sequences] == [alone(sequence.request) for sequence in sequences]


@torch.inference_mode()
def test_the_wait_for_a_row_is_none_of_a_texts_seconds(monkeypatch):
    clock = 0.0
    monkeypatch.setattr("radar.generation.batch.time.perf_counter", lambda: clock)
    batch = make_batch(2, FixedDepth(3))
    sequences = [sequence_of(request) for request in requests_of(3, tokens=30)]
    for sequence in sequences:
        batch.add(sequence)
    begun = None
    while batch.has_work:
        batch.step()
        clock += 1.0
        if begun is None and sequences[2].rounds:
            begun = clock
    assert sequences[2].seconds <= clock - begun + 2
    assert begun > 10


@torch.inference_mode()
def test_whether_texts_may_join_is_asked_once_a_step_and_only_when_one_could():
    asked, batch = 0, make_batch(2, FixedDepth(3))

    def admit():
        nonlocal asked
        asked += 1
        return True

    for request in requests_of(6, length=4, tokens=20):
        batch.add(sequence_of(request))
    counts = []
    while batch.has_work:
        before = asked
        batch.step(admit=admit)
        counts.append(asked - before)
    assert max(counts) == 1
    assert 2 <= sum(counts) <= 6 < len(counts)
