"""A batch whose pages run dry: the newest texts wait, and every text is the one that the request gets alone."""

import random
from dataclasses import replace

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import DEVICE
from test_rows_engine import MAX_LENGTH, alone, make_batch, sequence_of  # noqa: F401

import radar.generation.batch
from radar import FixedDepth, SamplingParams
from radar.engine import budget
from radar.engine.rows import RowsEngine
from radar.engine.shared_prompts import SharedPrompts
from radar.generation.request import Request
from radar.target.cache import StaticKVCache
from radar.target.pages import PagedKVCache

CACHE_TOKENS = MAX_LENGTH + 256  # of one text at least


def make_request(rng, prompt=None):
    prompt = prompt or [rng.randrange(17) for _ in range(rng.choice([20, 35, 60]))]
    choices = [SamplingParams(), SamplingParams(temperature=0.9, seed=rng.randrange(9), repetition_penalty=1.2)]
    return Request(prompt, rng.randint(60, 120), rng.choice(choices), frozenset())


@pytest.mark.parametrize(("policy", "graphs"), [(FixedDepth(2), True), (None, False)], ids=repr)
@torch.inference_mode()
def test_the_newest_wait_and_no_text_changes(policy, graphs, alone, monkeypatch):  # noqa: F811
    rng, waited, free = random.Random(f"{policy}"), [], []
    swap_out = PagedKVCache.swap_out
    monkeypatch.setattr(PagedKVCache, "swap_out", lambda self, row: waited.append(row) or swap_out(self, row))
    if graphs and DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
        monkeypatch.setattr(budget, "NODES", {1: 24})
        monkeypatch.setattr(budget, "CARRIED", {2: 16})
    batch = make_batch(6, policy, cache_tokens=CACHE_TOKENS, graphs=graphs or DEVICE.type == "cuda")
    requests = [make_request(rng) for _ in range(8)]
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    cancelled = []
    while batch.has_work:
        batch.step()
        free.append(batch.engine._pages.pool.available)
        aside, texts = batch.engine._aside, batch.engine._texts
        assert [text.number for text, _ in aside] == sorted(text.number for text, _ in aside)
        assert not aside or min(text.number for text, _ in aside) > min(text.number for text in texts)
        if len(aside) > 1 and not cancelled:  # one that waits
            cancelled = [sequence for sequence in sequences if sequence.token == aside[-1][0].key]
            cancelled[0].close()
    assert len(waited) > 1
    assert cancelled
    assert min(free) == 0
    assert free[-1] == len(batch.engine._pages.pool._users) - 1  # all of them again
    for request, sequence in zip(requests, sequences, strict=True):
        expected = alone(request)
        if sequence in cancelled:
            assert sequence.token_ids == expected[: len(sequence.token_ids)]
        else:
            assert sequence.token_ids == expected


@torch.inference_mode()
def test_all_that_belongs_to_a_row_is_kept():
    batch = make_batch(2, FixedDepth(2), graphs=DEVICE.type == "cuda")
    steps, sequence = batch.engine.steps, sequence_of(make_request(random.Random(3), [1, 2, 3] * 30))
    batch.add(sequence)
    while len(sequence.token_ids) < 5:
        batch.step()

    def found(row):
        length = int(steps.drafter.cache.length[row])
        parts = [tensor[row].clone() for tensor in (*steps.state.tensors, *steps.sampler.state)]
        parts += [cache.length[row].clone() for cache in steps.state.caches]
        for cache, layers in zip(steps.state.caches, (5, 1), strict=True):
            parts += [x[:, :, :length].clone() for i in range(layers) for x in cache.row(row).rows(i)]
        return [*parts, *(steps.sampler._rows[row].params, steps.sampler._rows[row].seed)]

    expected = found(0)
    saved = steps.state.save(0)
    assert not steps.target.cache.pool.held[0]
    for cache in steps.state.caches:
        cache.keys.fill_(7.0)
        cache.values.fill_(7.0)
    steps.state.restore(1, saved)
    steps.target.cache.publish()
    now = found(1)
    assert len(now) == len(expected) > 20
    for a, b in zip(now, expected, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@torch.inference_mode()
def test_a_prompt_that_is_given_up_leaves_its_pages():
    batch = make_batch(2, FixedDepth(2), cache_tokens=CACHE_TOKENS, graphs=DEVICE.type == "cuda")
    pool = batch.engine._pages.pool
    sequence = sequence_of(Request([3] * 290, 5, SamplingParams(), frozenset()))
    batch.add(sequence)
    batch.step()
    assert pool.available < len(pool._users) - 1
    sequence.close()
    batch.step()
    assert pool.available == len(pool._users) - 1


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a prompt is in before the others need another page")
@torch.inference_mode()
def test_a_prompt_gives_way_to_older_texts(alone, monkeypatch):  # noqa: F811
    """One that is half taken in is newer than all texts: it loses its pages, begins again, and none of them waits."""
    monkeypatch.setattr(radar.generation.batch, "PROMPTS", 1)  # a chunk a step
    gave_way, leave = [], RowsEngine._leave_door
    monkeypatch.setattr(RowsEngine, "_leave_door", lambda self: gave_way.append(True) or leave(self))
    batch = make_batch(3, FixedDepth(2), cache_tokens=CACHE_TOKENS)
    rng = random.Random(1)
    monkeypatch.setattr(batch.engine._prefill, "sizes", {16: 0})  # a long way in
    old = [
        Request([rng.randrange(17) for _ in range(length)], tokens, SamplingParams(), frozenset())
        for length, tokens in ((85, 90), (85, 90), (280, 10))
    ]
    sequences = [sequence_of(request) for request in old]
    for sequence in sequences:
        batch.add(sequence)
    while batch.has_work:
        batch.step()
        assert not batch.engine._aside
    assert gave_way
    assert [sequence.token_ids for sequence in sequences] == [alone(request) for request in old]


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=repr)
@torch.inference_mode()
def test_prompts_that_begin_alike_are_computed_once(policy, alone):  # noqa: F811
    """The same texts, and as good drafts: the head's keys and values are shared too."""
    rng = random.Random(5)
    system = [rng.randrange(17) for _ in range(140)]
    prompts = [system + [rng.randrange(17) for _ in range(rng.choice([3, 20, 90]))] for _ in range(5)]
    found = []
    for reuse in (False, True):
        batch = make_batch(3, policy, graphs=DEVICE.type == "cuda")
        requests = [Request(prompt, 30, SamplingParams(), frozenset(), reuse_prefix=reuse) for prompt in prompts]
        requests.append(Request(prompts[1], 30, SamplingParams(), frozenset()))  # one that wants no part of it
        sequences = [sequence_of(request) for request in requests]
        for sequence in sequences:
            batch.add(sequence)
        while batch.has_work:
            batch.step()
        found.append([(sequence.token_ids, [len(item.tokens) for item in sequence.rounds]) for sequence in sequences])
        reused = [sequence.rounds[0].num_reused_tokens for sequence in sequences]
        assert reused == ([0, 128, 128, 128, 128, 0] if reuse else [0] * 6)
    assert found[0] == found[1]
    assert [tokens for tokens, _ in found[0]] == [alone(request) for request in requests]


def test_what_the_draft_head_has_for_shared_pages_is_copied():
    sizes = {"num_layers": 1, "num_kv_heads": 2, "head_dim": 8, "dtype": torch.float32, "device": DEVICE}
    pages = PagedKVCache(batch_size=3, capacity=300, **sizes)
    drafter = StaticKVCache(batch_size=3, capacity=300, **sizes)
    drafter.keys.normal_()
    drafter.values.normal_()
    shared, prompt = SharedPrompts(pages, drafter), [*range(200)]
    assert pages.reserve(1, 200)
    shared.keep(1, prompt)
    before = drafter.keys.clone(), drafter.values.clone()
    drafter.keys[:, 1].zero_()
    drafter.values[:, 1].zero_()
    assert shared.take(2, prompt[:150]) == 128
    for cache, old in zip((drafter.keys, drafter.values), before, strict=True):
        assert torch.equal(cache[:, 2, :, :128], old[:, 1, :, :128])
        assert torch.equal(cache[:, 2, :, 128:], old[:, 2, :, 128:])
        assert torch.equal(cache[:, 0], old[:, 0])
    # pages that hold something else since leave nothing behind
    for row in (1, 2):
        pages.free(row)
    assert all(pages.reserve(row, 300) for row in range(3))
    for row in range(3):
        pages.free(row)
    assert pages.reserve(0, 200)
    shared.keep(0, [*range(300, 500)])
    assert len(shared._pairs) == 3
    shared.forget()
    assert shared.take(2, [*range(300, 500)]) == 0


@torch.inference_mode()
def test_another_policy_leaves_the_pages_of_known_prompts_alone(alone, monkeypatch):  # noqa: F811
    """Graphs are made anew for it, for which rounds run."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    monkeypatch.setattr(budget, "CARRIED", {2: 8})  # fewer tokens than the last chunk of the prompt has
    batch, reused = make_batch(3, FixedDepth(2), fallback=True, graphs=True), []
    known = []
    prompt = [random.Random(0).randrange(17) for _ in range(200)]
    for end in (0, 1):
        request = Request([*prompt, end], 30, SamplingParams(), frozenset())
        sequence = sequence_of(replace(request, reuse_prefix=True))
        batch.add(sequence)
        while batch.has_work:
            batch.step()
        assert sequence.token_ids == alone(request)
        cache = batch.engine.target.cache
        known.append(cache.keys[:, batch.engine._pages.pool._prefixes.find(prompt)].clone())
        reused.append(sequence.rounds[0].num_reused_tokens)
        batch.engine.set_policy(FixedDepth(3))
    assert reused == [0, 192]
    assert torch.equal(*known)


@torch.inference_mode()
def test_a_first_token_is_the_texts_own_wherever_it_moves(alone, monkeypatch):  # noqa: F811
    """A row is left, and another prompt fails, between two prompts of one step."""
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
    batch = make_batch(5, FixedDepth(2), graphs=True)
    first, last, moved, wrong, after = (
        sequence_of(Request(ids, 30, SamplingParams(temperature=1.0, seed=1), frozenset()))
        for ids in ([1, 2, 3], [4, 5, 6], [7, 8, 9, 1], [99], [2, 2, 5])
    )
    for sequence in (first, last):
        batch.add(sequence)
    for _ in range(3):
        batch.step()
    checked = radar.generation.batch.check_vocabulary

    release = batch.engine.release

    def check(ids, size):
        if ids == [99]:
            first.close()  # as another thread may
            release(first.token)
        return checked(ids, size)

    monkeypatch.setattr(radar.generation.batch, "check_vocabulary", check)
    for sequence in (moved, wrong, after):
        batch.add(sequence)
    monkeypatch.setattr(batch.engine, "release", lambda key: None if key is first.token else release(key))
    while batch.has_work:
        batch.step()
    for sequence in (last, moved, after):
        assert sequence.token_ids == alone(sequence.request)
