"""Prompts that are taken in while all rows are full: they wait at the row behind the others, and nothing changes."""

from dataclasses import replace

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import DEVICE
from test_rows_engine import alone, make_batch, sequence_of

from radar import FixedDepth, SamplingParams
from radar.engine import budget
from radar.generation.request import Request
from radar_kernels.reference_canonical import PAGE

__all__ = ["alone"]


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
    requests = requests_of(4, tokens=60)
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    pool = batch.engine._pages.pool
    while not (batch.engine._at_door and not batch.engine.free):
        batch.step()
    assert pool.held[2]
    sequences[2].close()
    while not batch.engine._at_door:
        batch.step()
    sequences[3].close()
    batch.step()
    assert not batch.engine._at_door
    assert not pool.held[2]
    while batch.has_work:
        batch.step()
    assert pool.available == len(pool._users) - 1
    assert [sequence.token_ids for sequence in sequences] == [*map(alone, requests[:2]), [], []]


@torch.inference_mode()
def test_a_prompt_at_the_door_that_has_lost_its_pages_begins_again(alone):
    """An older text needed them, when all of the prompt was in."""
    batch = make_batch(2, FixedDepth(3), graphs=DEVICE.type == "cuda")
    sequences, lost = [sequence_of(request) for request in requests_of(4, tokens=60)], 0
    for sequence in sequences:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
        if batch.engine._at_door and not batch.engine.free and not lost:
            batch.step()
            batch.engine._leave_door()
            lost += 1
    assert lost
    assert [sequence.token_ids for sequence in sequences] == [alone(sequence.request) for sequence in sequences]


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
    assert 6 <= sum(counts) <= 12 < len(counts)  # a text that waits for its row is asked for twice


@torch.inference_mode()
def test_a_prompt_that_may_not_enter_any_more_waits_again_as_the_first(monkeypatch):
    batch, is_same, asked, given = make_batch(2, FixedDepth(3)), True, [], []
    engine, admit = batch.engine, batch.engine.admit
    monkeypatch.setattr(engine, "admit", lambda key, *args, **more: given.append(key) or admit(key, *args, **more))
    sequences = [sequence_of(request) for request in requests_of(4, length=4, tokens=30)]
    for sequence in sequences:
        batch.add(sequence)

    def ask():
        asked.append(engine.free)
        return is_same

    while not engine._at_door or engine.free:
        batch.step(admit=ask)
    is_same = False  # the model is another one
    while engine._texts:
        batch.step(admit=ask)
    assert not engine._at_door
    assert not batch.holds_texts
    asked.clear()
    for _ in range(3):
        batch.step(admit=ask)
    assert asked == [2, 2, 2]
    is_same = True
    while batch.has_work:
        batch.step(admit=ask)
    assert given == [sequence.token for sequence in (*sequences[:3], *sequences[2:])]


@torch.inference_mode()
def test_while_rows_are_full_a_refusal_holds_until_a_text_ends():
    batch, asked = make_batch(2, FixedDepth(3)), []
    sequences = [sequence_of(request) for request in requests_of(3, length=4, tokens=30)]
    for sequence in sequences[:2]:
        batch.add(sequence)
    while batch.engine.free:
        batch.step()
    batch.add(sequences[2])
    while not any(sequence.has_ended for sequence in sequences):
        batch.step(admit=lambda: asked.append(batch.engine.free))
    assert asked == [0]
    batch.step(admit=lambda: asked.append(batch.engine.free))
    assert asked[1] > 0
