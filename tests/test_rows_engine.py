"""Texts that share rounds: each says what it says alone, whoever joins, leaves or is cancelled beside it."""

import random
from dataclasses import replace

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import DEVICE, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine import budget
from radar.engine.plain_rows import PlainRows
from radar.engine.round_rows import RoundRows
from radar.generation.batch import Batch
from radar.generation.processing import HostProcessing
from radar.generation.request import Request
from radar.generation.sequence import Sequence
from radar.target.model import TargetModel

TREE = TreeConfig(total_tokens=20, tree_top_k=4, max_calls=6)
MAX_LENGTH = 300


def make_batch(rows, policy, *, fallback=False, cache_tokens=None, graphs=DEVICE.type == "cuda"):
    """With a policy rounds, without one plain decoding."""
    sizes = {"max_length": MAX_LENGTH, "max_rows": 256, "batch_size": rows + 1}
    taps = None if policy else ()
    target = TargetModel(tiny_target(), tap_layers=taps, cache_tokens=cache_tokens, **sizes)
    if policy is None:
        return Batch(PlainRows(target, graphs=graphs))
    drafter = Eagle3Drafter(tiny_draft(), target.embed_tokens, TREE, **sizes)
    return Batch(RoundRows(target, drafter, policy, TREE, fallback=fallback, graphs=graphs))


def no_repetition(input_ids, scores):
    """A processor: never the token that came last."""
    return scores.index_fill(1, input_ids[0, -1:], -torch.inf)


def make_request(rng, *, processed=False):
    prompt = [rng.randrange(17) for _ in range(rng.choice([1, 2, 5, 30, 90, 150]))]
    sampling = rng.choice(
        [
            SamplingParams(),
            SamplingParams(temperature=rng.choice([0.5, 1.0]), seed=rng.randrange(100)),
            SamplingParams(temperature=0.8, top_p=0.9, seed=rng.randrange(100)),
            SamplingParams(repetition_penalty=1.3),
            SamplingParams(temperature=1.0, top_k=5, logit_bias={3: 2.0}, seed=rng.randrange(100)),
        ]
    )
    ends = frozenset(rng.sample(range(17), rng.choice([0, 0, 1])))
    processing = HostProcessing((no_repetition,)) if processed and rng.random() < 0.3 else None
    return Request(prompt, rng.randint(1, 40), sampling, ends, processing=processing)


def sequence_of(request):
    return Sequence(request, lambda _: None, lambda _: None, DEVICE)


@pytest.fixture(scope="module")
def alone():
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(2), tree=TREE, max_length=MAX_LENGTH, fallback=False
    )
    return lambda request: decoder.run(request).token_ids


@pytest.mark.parametrize(
    ("mix", "policy"),
    [
        *enumerate([FixedDepth(3), Threshold(0.6), Threshold(0.6), FixedDepth(3), Threshold(0.6), FixedDepth(3)]),
        *((mix, None) for mix in (0, 1, 4, 5)),
    ],
    ids=repr,
)
@torch.inference_mode()
def test_every_text_is_the_one_the_request_gets_alone(mix, policy, alone, monkeypatch):
    rng = random.Random(f"{mix} {policy}")
    if graphs := mix % 2 == 1 and DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    if mix in (2, 3):
        monkeypatch.setattr(budget, "NODES", {1: 12})  # small trees, of which few nodes are expanded
    batch = make_batch(rng.choice([2, 3, 5]), policy, fallback=mix % 3 > 0, graphs=graphs or DEVICE.type == "cuda")
    requests = [make_request(rng, processed=mix == 4) for _ in range(9)]
    sequences, cancelled = [], set()
    while len(sequences) < len(requests) or batch.has_work:
        for request in requests[len(sequences) : len(sequences) + rng.choice([0, 1, 2])]:
            sequences.append(sequence_of(request))
            batch.add(sequences[-1])
        if sequences and rng.random() < 0.05:
            cancelled.add(victim := rng.randrange(len(sequences)))
            sequences[victim].close()
        batch.step()
    for number, (request, sequence) in enumerate(zip(requests, sequences, strict=True)):
        expected = alone(request)
        if number in cancelled:
            assert expected[: len(sequence.token_ids)] == sequence.token_ids
        else:
            assert sequence.token_ids == expected
            assert sequence.finish_reason in ("stop", "length")


class Never:
    """A fallback that takes plain steps alone."""

    drafts = False

    def begin_text(self):
        pass

    def record(self, tokens, seconds, drafted):
        pass


@torch.inference_mode()
def test_pairs_that_no_first_call_takes_are_caught_up_with(alone, monkeypatch):
    """Rounds of few rows may leave more pairs than the first call of many takes: there is a plain step in between."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr(budget, "NODES", {1: 12})
    monkeypatch.setattr(budget, "CALLS", 12)
    batch = make_batch(5, FixedDepth(3), fallback=True, graphs=True)
    *few, many = batch.engine.widths
    assert [width.steps.pairs for width in (*few, many)] == [7, 7, 4, 4]
    many.fallback = None
    for width in few:
        width.fallback = Never()  # pairs pile up
    rng, caught_up = random.Random(2), 0
    requests = [replace(make_request(rng), limit=12 + row, end_token_ids=frozenset()) for row in range(5)]
    sequences = [sequence_of(request) for request in requests]
    batch.add(sequences[0])
    while len(sequences[0].rounds) < 3:
        batch.step()
    for sequence in sequences[1:]:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
        caught_up += many.catches_up
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in requests]
    assert caught_up


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_rounds_take_a_prompt_along(policy, alone, monkeypatch):
    """One that comes alone, in the verifications of the others' rounds, and its text is the same; one of several goes
    ahead of them."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    batch, ahead = make_batch(4, policy, graphs=True), []
    taken = [torch.full((64,), -1, device=DEVICE) for _ in range(4000)]  # what graphs read is nobody else's
    chunks = batch.engine._chunks
    batch.engine._chunks = {rows: lambda rows=rows: (ahead.append(rows), chunks[rows]()) for rows in chunks}
    rng = random.Random(4)
    requests = [replace(make_request(rng), limit=40, end_token_ids=frozenset()) for _ in range(3)]
    prompt = [rng.randrange(17) for _ in range(150)]
    requests.append(Request(prompt, 20, SamplingParams(temperature=0.7, seed=3), frozenset()))
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences[:3]:
        batch.add(sequence)
    while not all(sequence.token_ids for sequence in sequences[:3]):
        batch.step()
    assert ahead
    ahead.clear()
    batch.add(sequences[3])
    rounds = [len(sequence.rounds) for sequence in sequences[:3]]
    while not sequences[3].token_ids:
        batch.step()
    assert not ahead
    assert all(bool((part == -1).all()) for part in taken[::100])
    assert all(len(sequence.rounds) > old + 1 for sequence, old in zip(sequences[:3], rounds, strict=True))
    while batch.has_work:
        batch.step()
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in requests]


@torch.inference_mode()
def test_trees_with_fewer_candidates_than_nodes(alone, monkeypatch):
    """Rows share what there is: a tree has no more nodes than candidates and a root. Few pairs can
    wait, too, also while plain steps are timed."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr("test_rows_engine.TREE", TreeConfig(total_tokens=20, tree_top_k=3, max_calls=2))
    batch = make_batch(3, FixedDepth(2), fallback=True, graphs=True)
    rng = random.Random(8)
    requests = [make_request(rng) for _ in range(5)]
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in requests]


@torch.inference_mode()
def test_drafts_are_as_good_as_alone(monkeypatch):
    """Where all of each tree is verified, every round accepts what it does alone: also of a prompt that others' rounds
    took along."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr(budget, "NODES", {1: 3 * TREE.total_tokens})
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, max_length=MAX_LENGTH, fallback=False
    )
    batch, rng = make_batch(3, FixedDepth(3), graphs=True), random.Random(6)
    chunks = batch.engine._chunks
    requests = [
        Request([rng.randrange(17) for _ in range(length)], 60, SamplingParams(), frozenset())
        for length in (5, 90, 150)
    ]
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        if sequence is sequences[2]:
            batch.engine._chunks = dict.fromkeys(chunks, None)  # it rides, or fails
        batch.add(sequence)
        while not sequence.token_ids:
            batch.step()
    while batch.has_work:
        batch.step()
    for request, sequence in zip(requests, sequences, strict=True):
        expected = decoder.run(request).rounds
        assert [item.tokens for item in sequence.rounds] == [item.tokens for item in expected]
        assert max(len(item.tokens) for item in expected) > 1
