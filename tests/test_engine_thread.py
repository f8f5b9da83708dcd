"""Several rows behind one thread: texts of any threads share rounds, and each is what its request gets alone."""

import gc
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from rows_decoders import PROMPTS, Gate, alone, make_rows, tokens_of

from radar.errors import UsageError
from radar.generation.round_queue import Made, RoundQueue
from radar.metrics import Round

OPTIONS = [
    {"max_new_tokens": 3 + 4 * (k % 4), "temperature": k % 2 * 0.9, "seed": k, "eos_token_id": [k] if k % 3 else []}
    for k in range(8)
]


@pytest.fixture(params=["radar", "plain"])
def decoder(request):
    return make_rows(request.param, 4)


@pytest.fixture
def two():
    return make_rows("plain", 2)


def thread_of(decoder):
    return decoder._maker._thread


def test_eight_threads_over_four_rows(decoder):
    expected = [alone(prompt, **options) for prompt, options in zip(PROMPTS, OPTIONS, strict=True)]
    start = threading.Barrier(8)

    def work(k):
        start.wait(60)
        if k % 3 == 0:
            return decoder.generate(PROMPTS[k], **OPTIONS[k]).token_ids
        if k % 3 == 1:
            stream = decoder.stream(PROMPTS[k], **OPTIONS[k])
            text = "".join(stream)
            assert text == stream.output.text
            return stream.output.token_ids
        return tokens_of(decoder.rounds(PROMPTS[k], **OPTIONS[k]))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == expected
    total = decoder.metrics
    assert (total.num_generations, total.num_tokens) == (8, sum(map(len, expected)))
    assert total.num_prompt_tokens == sum(map(len, PROMPTS))
    assert total.seconds > 0


def test_texts_share_rounds(two):
    """A round has a token of each."""
    gate, seen = Gate(), []
    two.engine.round, plain = lambda: seen.append(len(made := plain())) or made, two.engine.round
    first = two.rounds(PROMPTS[0], max_new_tokens=12, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    others = [two.rounds(prompt, max_new_tokens=12) for prompt in PROMPTS[1:3]]
    gate.opened.set()
    texts = [tokens_of(one) for one in (first, *others)]
    assert texts == [alone(prompt, max_new_tokens=12) for prompt in PROMPTS[:3]]
    assert max(seen) == 2
    assert sum(seen) == 3 * 11  # the third had to wait for a row


def test_what_a_reader_has_read_is_what_a_sequence_says(two):
    one = two.rounds(PROMPTS[1], max_new_tokens=8)
    assert (one.token_ids, one.finish_reason) == ([], None)
    first = next(one)
    assert first.is_prefill
    assert one.token_ids == first.tokens
    rest = tokens_of(one)
    assert one.token_ids == first.tokens + rest
    assert one.finish_reason == "length"
    assert one.seconds > 0
    assert [item.finish_reason for item in one.rounds] == [None] * 7 + ["length"]


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_a_text_that_nobody_reads_is_out_within_a_round(two, how):
    calls, reached, opened = [], threading.Event(), threading.Event()

    def hold(ids, scores):
        calls.append(ids.shape[1])
        if len(calls) == 2:
            reached.set()
            assert opened.wait(20)
        return False

    text = two.rounds(PROMPTS[0], stopping_criteria=[hold])
    assert reached.wait(20)  # in the middle of its first round behind the prompt
    if how == "close":
        text.close()
    elif how == "break":
        for _ in text:
            break
    text = None
    opened.set()
    assert two.generate(PROMPTS[2], max_new_tokens=9).token_ids == alone(PROMPTS[2], max_new_tokens=9)
    assert len(calls) == 2


def test_closing_ends_the_wait_of_a_reader(two):
    gate, found = Gate(), []
    one = two.rounds(PROMPTS[0], stopping_criteria=[gate])
    reader = threading.Thread(target=lambda: found.append(list(one)))
    reader.start()
    assert gate.reached.wait(60)
    one.close()
    reader.join(60)
    assert found == [[]]
    assert one.output(None, "").finish_reason == "cancelled"
    gate.opened.set()


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")
def test_what_is_raised_behind_a_text_that_has_ended_reaches_its_reader(two, monkeypatch):
    """Its last round, which nobody is told of."""
    monkeypatch.setattr(two._kept.tally, "add", lambda item: {}[item.finish_reason] if item.finish_reason else None)
    text = two.rounds(PROMPTS[0], max_new_tokens=3)
    with ThreadPoolExecutor(1) as pool, closing(text), pytest.raises(KeyError, match="length"):
        pool.submit(tokens_of, text).result(20)
    monkeypatch.undo()
    assert two.generate(PROMPTS[0], max_new_tokens=3).token_ids == alone(PROMPTS[0], max_new_tokens=3)


def test_an_interrupt_while_a_reader_waits_leaves_nothing_broken(two):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    opened = threading.Event()

    def interrupt(ids, scores):
        if not opened.is_set():
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does: the reader waits meanwhile
            assert opened.wait(60)
        return False

    for prompts in (PROMPTS[:4], PROMPTS[0]):
        opened.clear()
        with pytest.raises(KeyboardInterrupt):
            two.generate(prompts, stopping_criteria=[interrupt])
        opened.set()
        assert two.generate(PROMPTS[2], max_new_tokens=5).token_ids == alone(PROMPTS[2], max_new_tokens=5)


def test_other_decoders_of_the_model_go_on_beside(two):
    other, gate = make_rows("radar", 3, two.model), Gate()
    running = two.rounds(PROMPTS[0], max_new_tokens=10, stopping_criteria=[gate])
    assert gate.reached.wait(60)  # in the middle of a step
    assert other.generate(PROMPTS[1], max_new_tokens=10).token_ids == alone(PROMPTS[1], max_new_tokens=10)
    gate.opened.set()
    assert tokens_of(running) == alone(PROMPTS[0], max_new_tokens=10)


@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_the_thread_ends_with_the_decoder(kind):
    decoder = make_rows(kind, 3)
    assert thread_of(decoder) is None  # nobody has asked for a text
    text = decoder.rounds(PROMPTS[0])
    next(text)
    engine, thread = weakref.ref(decoder.engine), thread_of(decoder)
    assert thread.daemon
    gc.collect()
    gc.disable()
    try:
        del decoder
        assert next(text).tokens  # who reads keeps it at work
        assert thread.is_alive()
        del text
        thread.join(60)
        assert not thread.is_alive()
        assert engine() is None
    finally:
        gc.enable()


def test_an_idle_thread_holds_nothing():
    two = make_rows("plain", 2)

    def keep(ids, scores):
        return False

    two.generate(PROMPTS[0], max_new_tokens=3, stopping_criteria=[keep])
    thread, gone, engine = thread_of(two), weakref.ref(keep), weakref.ref(two.engine)
    del keep
    two.generate(PROMPTS[0], max_new_tokens=3)  # the thread has been through its loop
    assert gone() is None
    gc.collect()
    del two
    thread.join(60)
    assert engine() is None


@pytest.mark.parametrize("rows", [0, 129, 2.0, True, "4", None])
def test_a_number_of_rows_that_is_none_is_refused(rows):
    with pytest.raises(UsageError, match="max_batch_size, texts in a round, must be an integer from 1 to 128"):
        make_rows("plain", rows)
    with pytest.raises(UsageError, match="max_batch_size, texts in a round, must be an integer from 1 to 32"):
        make_rows("radar", rows)
    with pytest.raises(UsageError, match="from 1 to 32, got 33"):
        make_rows("radar", 33)


def test_a_hundred_rows_of_plain_decoding():
    prompts = [[number % 16, number // 16, 3] for number in range(110)]
    found = make_rows("plain", 100).generate(prompts, max_new_tokens=6, eos_token_id=())
    sampled = [0, 37, 64, 99, 100, 109]
    assert [found[one].token_ids for one in sampled] == [
        alone(prompts[one], max_new_tokens=6, eos_token_id=()) for one in sampled
    ]


def test_who_wants_the_whole_text_is_not_woken_for_its_rounds(two, monkeypatch):
    """Neither its reader nor the reader of many, but by its end, and by what ends it: an error, a close."""
    woken, held = [], []
    with monkeypatch.context() as patch:
        patch.setattr(RoundQueue, "hold", lambda queue: held.append(queue))
        two.generate(PROMPTS[0], max_new_tokens=3)
        two.generate(PROMPTS[:3], max_new_tokens=3)
        list(two.rounds(PROMPTS[0], max_new_tokens=3))
    assert len(held) == 4
    text = two.rounds(PROMPTS[0], max_new_tokens=3, eos_token_id=())
    assert len(next(text).tokens) == 1
    text.read()
    assert text.token_ids == alone(PROMPTS[0], max_new_tokens=3, eos_token_id=())

    queue = RoundQueue()
    queue.put(Made(Round([1])))
    queue.hold()
    items = [Round([2]), Round([3], finish_reason="length")]
    reader = threading.Thread(target=lambda: woken.extend(queue.get().item for _ in range(3)))
    reader.start()
    queue.put(Made(items[0]))
    assert queue._items.empty()
    queue.put(Made(items[1]))
    reader.join(60)
    assert woken[1:] == items
    for last in (ValueError("it"), None):
        queue = RoundQueue()
        queue.hold()
        for item in (items[0], last):
            queue.put(Made(item))
        assert [queue.get().item for _ in range(2)] == [items[0], last]


def test_times_by_part_are_taken_of_one_text():
    with pytest.raises(UsageError, match="leave max_batch_size out"):
        make_rows("radar", 2, profile=True)
