"""Several rows behind one thread: texts of any threads share rounds, and each is the one that its request gets alone."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from decoders import WordTokenizer
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.errors import BusyError, NumericalError, UsageError

TREE = TreeConfig(total_tokens=16, max_calls=3, tree_top_k=4)
PROMPTS = [[(7 * i + i * i + k) % VOCAB for i in range(2 + 5 * k)] for k in range(8)]
OPTIONS = [
    {"max_new_tokens": 3 + 4 * (k % 4), "temperature": k % 2 * 0.9, "seed": k, "eos_token_id": [k] if k % 3 else []}
    for k in range(8)
]


def make(kind, rows, model=None, **options):
    model = tiny_target() if model is None else model
    options = {"max_length": 150, "tokenizer": WordTokenizer(), "max_batch_size": rows} | options
    if kind == "plain":
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, fallback=False, **options)


@pytest.fixture(scope="module")
def alone():
    decoder = make("radar", 1)
    return lambda prompt, **options: decoder.generate(prompt, **options).token_ids


@pytest.fixture(params=["radar", "plain"])
def decoder(request):
    return make(request.param, 4)


@pytest.fixture
def two():
    return make("plain", 2)


class Gate:
    """A stopping criterion that lets its text go on when it is told to."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.reached.set()
        assert self.opened.wait(60)
        return False


def thread_of(decoder):
    return decoder._maker._thread


def test_eight_threads_over_four_rows(decoder, alone):
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
        return [token for item in decoder.rounds(PROMPTS[k], **OPTIONS[k]) for token in item.tokens]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == expected
    total = decoder.metrics
    assert (total.num_generations, total.num_tokens) == (8, sum(map(len, expected)))
    assert total.num_prompt_tokens == sum(map(len, PROMPTS))
    assert 0 < total.seconds


def test_texts_share_rounds(two, alone):
    """A round has a token of each."""
    gate, seen = Gate(), []
    two.engine.round, plain = lambda: seen.append(len(made := plain())) or made, two.engine.round
    first = two.rounds(PROMPTS[0], max_new_tokens=12, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    others = [two.rounds(prompt, max_new_tokens=12) for prompt in PROMPTS[1:3]]
    gate.opened.set()
    texts = [[token for item in one for token in item.tokens] for one in (first, *others)]
    assert texts == [alone(prompt, max_new_tokens=12) for prompt in PROMPTS[:3]]
    assert max(seen) == 2
    assert sum(seen) == 3 * 11  # the third had to wait for a row


def test_what_a_reader_has_read_is_what_a_sequence_says(two):
    one = two.rounds(PROMPTS[1], max_new_tokens=8)
    assert (one.token_ids, one.finish_reason) == ([], None)
    first = next(one)
    assert first.is_prefill
    assert one.token_ids == first.tokens
    rest = [token for item in one for token in item.tokens]
    assert one.token_ids == first.tokens + rest
    assert one.finish_reason == "length"
    assert one.seconds > 0
    assert [item.finish_reason for item in one.rounds] == [None] * 7 + ["length"]


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_a_text_that_nobody_reads_frees_its_row(two, how, alone):
    """Two rows, two endless texts: the next one gets a row once one of them is gone."""
    gates = [Gate(), Gate()]
    texts = [two.stream(PROMPTS[k], stopping_criteria=[gates[k]]) for k in range(2)]
    assert all(gate.reached.wait(60) for gate in gates[:1])
    if how == "close":
        texts[0].close()
    elif how == "drop":
        del texts[0]
    else:
        gates[0].opened.set()
        for _ in texts.pop(0):
            break
    gates[0].opened.set()
    gates[1].opened.set()
    texts[-1].close()
    assert two.generate(PROMPTS[2], max_new_tokens=5).token_ids == alone(PROMPTS[2], max_new_tokens=5)
    assert len(two.engine._free) == 2 if hasattr(two.engine, "_free") else True


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


def test_an_interrupt_while_a_reader_waits_leaves_nothing_broken(two, alone, monkeypatch):
    gate = Gate()
    gate.opened.set()
    from radar.generation import round_queue

    with monkeypatch.context() as patch:
        patch.setattr(round_queue.RoundQueue, "get", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            two.generate(PROMPTS[:4], stopping_criteria=[gate])
    assert two.generate(PROMPTS[2], max_new_tokens=5).token_ids == alone(PROMPTS[2], max_new_tokens=5)
    assert not two._maker._batch.holds_texts


@pytest.mark.parametrize(
    ("where", "at", "error"),
    [
        ("logits_processor", 1, RuntimeError), ("logits_processor", 4, KeyboardInterrupt),
        ("stopping_criteria", 1, KeyboardInterrupt), ("stopping_criteria", 4, RuntimeError),
    ],
)  # fmt: skip
def test_what_a_text_raises_ends_it_alone(decoder, alone, where, at, error):
    left = [at]

    def fail(ids, scores):
        left[0] -= 1
        if left[0] == 0:
            raise error("broken")
        return scores if where == "logits_processor" else False

    options = {"max_new_tokens": 10}
    good = [decoder.rounds(prompt, **options) for prompt in PROMPTS[1:4]]
    bad = decoder.rounds(PROMPTS[0], **options, **{where: [fail]})
    with pytest.raises(error, match="broken"):
        list(bad)
    assert list(bad) == []
    assert bad.finish_reason == "error"
    assert bad.token_ids == alone(PROMPTS[0], **options)[: len(bad.token_ids)]
    for prompt, one in zip(PROMPTS[1:4], good, strict=True):
        assert [token for item in one for token in item.tokens] == alone(prompt, **options)


def test_scores_that_are_no_numbers_end_their_text_alone(decoder, alone):
    model, poison = decoder.model, 11

    def poisoned(module, args, out):
        return torch.where((args[0] == poison)[..., None], torch.nan, out)

    handle = model.model.embed_tokens.register_forward_hook(poisoned)
    clean = [token for token in range(VOCAB) if token != poison]
    bad = decoder.rounds([3, poison, 4], max_new_tokens=4)
    ok = decoder.rounds([1, 2, 3], max_new_tokens=4, suppress_tokens=[poison])
    with pytest.raises(NumericalError):
        list(bad)
    found = [token for item in ok for token in item.tokens]
    handle.remove()
    assert found == alone([1, 2, 3], max_new_tokens=4, suppress_tokens=[poison])
    assert set(found) <= set(clean)


def test_a_failure_of_the_engine_ends_all_texts_and_the_next_gets_a_new_one(decoder, alone):
    gate, engine, left = Gate(), decoder.engine, [3]
    texts = [decoder.rounds(prompt, max_new_tokens=20, stopping_criteria=[gate]) for prompt in PROMPTS[:6]]
    assert gate.reached.wait(60)

    def fail(made=engine.round):
        left[0] -= 1
        if not left[0]:  # some have a row by then, others wait
            raise MemoryError("out of it")
        return made()

    engine.round = fail
    gate.opened.set()
    for one in texts:
        with pytest.raises(MemoryError, match="out of it"):
            list(one)
        assert one.finish_reason == "error"
        assert list(one) == []
    assert decoder.generate(PROMPTS[0], max_new_tokens=5).token_ids == alone(PROMPTS[0], max_new_tokens=5)
    assert decoder.engine is not engine


def test_an_engine_that_cannot_be_made_is_told_to_who_asks(two):
    expected, recipe = two.generate(PROMPTS[0], max_new_tokens=5).token_ids, two._kept.recipe

    class Broken:
        turns = recipe.turns

        def build(self, model):
            raise UsageError("does not fit")

    two._kept.recipe = Broken()
    two.model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, out: None)  # so it is to be made again
    with pytest.raises(UsageError, match="does not fit"):
        two.generate(PROMPTS[0], max_new_tokens=5)
    two._kept.recipe = recipe
    assert two.generate(PROMPTS[0], max_new_tokens=5).token_ids == expected


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("what", ["generate", "read", "astream"])
def test_a_processor_that_asks_for_another_text_is_told_so(two, where, what):
    other = two.rounds(PROMPTS[1], max_new_tokens=30)

    def ask(ids, scores):
        if what == "generate":
            two.generate([1, 2], max_new_tokens=2)
        elif what == "read":
            next(other)
        else:
            two.astream([1, 2], max_new_tokens=2)
        return scores if where == "logits_processor" else False

    with pytest.raises(BusyError, match="in the middle of a round"):
        two.generate(PROMPTS[0], max_new_tokens=20, **{where: [ask]})
    assert len([token for item in other for token in item.tokens]) == 30


def test_a_hook_that_asks_for_a_text_of_the_same_model_is_told_so(two):
    baseline = AutoregressiveDecoder(two.model, max_length=150)

    def ask(_module, _args, _out):
        two.generate([1, 2], max_new_tokens=2)

    handle = two.model.model.layers[1].register_forward_hook(ask)
    for decoder in (baseline, two):
        with pytest.raises(BusyError):
            decoder.generate(PROMPTS[0], max_new_tokens=3)
    handle.remove()
    assert (
        two.generate(PROMPTS[0], max_new_tokens=3).token_ids
        == baseline.generate(PROMPTS[0], max_new_tokens=3).token_ids
    )


def test_other_decoders_of_the_model_go_on_beside(two, alone):
    other, gate = make("radar", 3, two.model), Gate()
    running = two.rounds(PROMPTS[0], max_new_tokens=10, stopping_criteria=[gate])
    assert gate.reached.wait(60)  # in the middle of a step
    assert other.generate(PROMPTS[1], max_new_tokens=10).token_ids == alone(PROMPTS[1], max_new_tokens=10)
    gate.opened.set()
    assert [token for item in running for token in item.tokens] == alone(PROMPTS[0], max_new_tokens=10)


@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_the_thread_ends_with_the_decoder(kind):
    decoder = make(kind, 3)
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
    two = make("plain", 2)

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


def test_a_changed_model_is_met_by_the_next_text(decoder):
    model = decoder.model
    decoder.generate(PROMPTS[0], max_new_tokens=5)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert (
        decoder.generate(PROMPTS[0], max_new_tokens=9).token_ids
        == make("plain", 1, model).generate(PROMPTS[0], max_new_tokens=9).token_ids
    )
    engine = decoder.engine
    model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, out: out * 0.5)
    found = decoder.generate(PROMPTS[1], max_new_tokens=9).token_ids
    assert found == make("plain", 1, model).generate(PROMPTS[1], max_new_tokens=9).token_ids
    assert decoder.engine is not engine


def test_a_text_waits_until_those_under_way_have_ended_if_the_model_has_changed(two):
    """Two rows, and the second stays empty."""
    gate, engine, seen = Gate(), two.engine, []
    engine.round, plain = lambda: seen.append(len(made := plain())) or made, engine.round
    first = two.rounds(PROMPTS[0], max_new_tokens=10, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    two.model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, out: out * 0.5)
    second = two.rounds(PROMPTS[1], max_new_tokens=10)
    gate.opened.set()
    assert len([token for item in first for token in item.tokens]) == 10
    expected = make("plain", 1, two.model).generate(PROMPTS[1], max_new_tokens=10).token_ids
    assert [token for item in second for token in item.tokens] == expected
    assert set(seen) == {1}
    assert two.engine is not engine


def test_another_policy_decides_from_the_next_text_on(alone):
    decoder, gate = make("radar", 3), Gate()
    first = decoder.rounds(PROMPTS[0], max_new_tokens=12, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    decoder.policy = FixedDepth(1)
    second = decoder.rounds(PROMPTS[1], max_new_tokens=12)
    gate.opened.set()
    for one, calls in ((first, 3), (second, 1)):
        assert {item.num_draft_calls for item in one if not item.is_prefill} == {calls}
    assert (first.token_ids, second.token_ids) == tuple(alone(prompt, max_new_tokens=12) for prompt in PROMPTS[:2])
    with pytest.raises(UsageError):
        decoder.policy = 5
    decoder.policy = Threshold(0.5)
    assert decoder.generate(PROMPTS[2], max_new_tokens=6).token_ids == alone(PROMPTS[2], max_new_tokens=6)


@pytest.mark.parametrize("rows", [0, 33, 2.0, True, "4", None])
def test_a_number_of_rows_that_is_none_is_refused(rows):
    with pytest.raises(UsageError, match="max_batch_size is how many texts share a round, an integer from 1 to 32"):
        make("plain", rows)
    with pytest.raises(UsageError, match="max_batch_size is how many texts"):
        make("radar", rows)


def test_times_by_part_are_taken_of_one_text():
    with pytest.raises(UsageError, match="leave max_batch_size out"):
        make("radar", 2, profile=True)
