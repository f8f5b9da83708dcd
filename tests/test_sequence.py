"""Many texts of one decoder: turns, threads, event loops, cancellation, and what processors and streamers may do."""

import asyncio
import gc
import threading
import weakref

import pytest
import torch
from fake_graphs import with_fake_graphs
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import BusyError, UsageError

TREE = TreeConfig(total_tokens=20, max_calls=4)
PROMPTS = [[(7 * i + i * i + k) % VOCAB for i in range(20 + k)] for k in range(3)]


class Letters:
    """Token t reads as one letter."""

    eos_token_id = None

    def __call__(self, text):
        return {"input_ids": [ord(letter) - 97 for letter in text]}

    def decode(self, ids, **_options):
        return "".join(chr(97 + int(i)) for i in ids)


@pytest.fixture(params=["eager", "graph", "plain"])
def decoder(request, monkeypatch):
    options = {"max_length": 200, "tokenizer": Letters()}
    if request.param == "plain":
        return AutoregressiveDecoder(tiny_target(), **options)
    policy = FixedDepth(3)
    ours = RadarDecoder(tiny_target(), draft=tiny_draft(), policy=policy, tree=TREE, fallback=False, **options)
    if request.param == "graph" and not torch.cuda.is_available():
        return with_fake_graphs(monkeypatch, ours)
    return ours


def texts(decoder, **options):
    return [decoder.generate(prompt, max_new_tokens=18, **options).token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3, "repetition_penalty": 1.3}])
def test_streams_of_one_decoder_take_turns(decoder, options):
    """Each goes on where it was: the engine takes its text in again, and the noise depends on the place alone."""
    expected = texts(decoder, **options)
    before = decoder.metrics
    open_ones = [decoder.rounds(prompt, max_new_tokens=18, **options) for prompt in PROMPTS]
    found = [[], [], []]
    while not all(one.has_ended for one in open_ones):
        for mine, one in zip(found, open_ones, strict=True):
            item = next(one, None)
            mine += item.tokens if item else []
    assert found == expected
    assert decoder.metrics.num_generations - before.num_generations == 3
    assert decoder.metrics.num_prompt_tokens - before.num_prompt_tokens == sum(map(len, PROMPTS))


def test_processors_and_criteria_go_on_after_another_texts_turn(decoder):
    calls = []

    def shift(ids, scores):
        calls.append(ids.shape[1])
        return scores.roll(1, dims=-1)

    expected = decoder.generate(PROMPTS[0], max_new_tokens=20, logits_processor=[shift]).token_ids
    calls.clear()
    one = decoder.rounds(PROMPTS[0], max_new_tokens=20, logits_processor=[shift])
    found = []
    for item in one:
        found += item.tokens
        decoder.generate(PROMPTS[1], max_new_tokens=3)
    assert found == expected
    assert calls == list(range(len(PROMPTS[0]), len(PROMPTS[0]) + 20))  # once for every token, as in plain decoding


def test_threads_wait_for_their_turn(decoder):
    expected, found = texts(decoder), {}

    def work(k):
        found[k] = [decoder.generate(PROMPTS[k], max_new_tokens=18).token_ids for _ in range(3)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert found == {k: [expected[k]] * 3 for k in range(3)}


def test_streams_in_an_event_loop(decoder):
    expected = ["".join(decoder.stream(prompt, max_new_tokens=18)) for prompt in PROMPTS]

    async def read(prompt):
        stream = await asyncio.to_thread(decoder.stream, prompt, max_new_tokens=18)
        pieces = []
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            pieces.append(piece)
        return "".join(pieces)

    async def all_of_them():
        return await asyncio.gather(*map(read, PROMPTS))

    assert asyncio.run(all_of_them()) == expected


def test_a_stream_is_closed_from_another_thread(decoder):
    """While a round is under way there: it ends first, and is the last."""
    inside, closed = threading.Event(), threading.Event()

    def wait(ids, scores):
        inside.set()
        assert closed.wait(600)
        return False

    stream = decoder.stream(PROMPTS[0], max_new_tokens=100, stopping_criteria=[wait])
    pieces = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    assert inside.wait(600)
    stream.close()
    closed.set()
    reader.join(600)
    assert not reader.is_alive()
    assert stream.output.finish_reason == "cancelled"
    assert 1 <= len(stream.output.token_ids) <= 1 + TREE.max_calls
    assert list(stream) == []
    assert texts(decoder)


def test_a_closed_text_makes_no_more_rounds_and_lets_go(decoder):
    class Keep:
        def __call__(self, ids, scores):
            return scores

    processor = Keep()
    gone = weakref.ref(processor)
    one = decoder.rounds(PROMPTS[0], logits_processor=[processor])
    next(one)
    one.close()
    assert list(one) == []
    gc.collect()
    gc.disable()
    try:
        del one, processor
        assert gone() is None
    finally:
        gc.enable()


def test_an_abandoned_text_lets_go(decoder):
    def keep(ids, scores):
        return scores

    gone = weakref.ref(keep)
    for _ in decoder.rounds(PROMPTS[0], logits_processor=[keep]):
        break
    del keep
    gc.collect()
    assert gone() is None
    assert decoder.engine.target.cache.length.item() == len(PROMPTS[0])  # the decoder is still there


def test_a_processor_that_asks_for_another_text_is_told_so(decoder):
    expected = texts(decoder)

    def ask(ids, scores):
        decoder.generate([1, 2], max_new_tokens=2)
        return scores

    with pytest.raises(BusyError, match="in the middle of a round"):
        decoder.generate(PROMPTS[0], max_new_tokens=20, logits_processor=[ask])
    other = decoder.rounds(PROMPTS[1])

    def read(ids, scores):
        next(other)
        return False

    with pytest.raises(BusyError, match="in the middle of a round"):
        decoder.generate(PROMPTS[0], max_new_tokens=20, stopping_criteria=[read])
    assert texts(decoder) == expected


@pytest.mark.parametrize(
    ("where", "at", "error"),
    [
        ("logits_processor", 1, KeyboardInterrupt), ("logits_processor", 4, RuntimeError),
        ("stopping_criteria", 1, RuntimeError), ("stopping_criteria", 4, KeyboardInterrupt),
    ],
)  # fmt: skip
def test_a_decoder_survives_what_it_calls(decoder, where, at, error):
    expected, left = texts(decoder), [at]

    def fail(ids, scores):
        left[0] -= 1
        if left[0] == 0:
            raise error("broken")
        return scores if where == "logits_processor" else False

    stream = decoder.stream(PROMPTS[0], max_new_tokens=18, **{where: [fail]})
    with pytest.raises(error, match="broken"):
        list(stream)
    assert list(stream) == []  # it has ended
    assert stream.output.finish_reason == "error"
    assert stream.output.token_ids == expected[0][: len(stream.output.token_ids)]
    assert texts(decoder) == expected


class Streamer:
    def __init__(self, fail_at=None, decoder=None):
        self.got, self.ends, self.fail_at, self.decoder = [], 0, fail_at, decoder

    def put(self, ids):
        if len(self.got) == self.fail_at:
            raise OSError("the pipe is closed")
        self.got.append(ids.flatten().tolist())
        if self.decoder is not None and len(self.got) == 4:
            self.nested = self.decoder.generate(PROMPTS[1], max_new_tokens=5).token_ids

    def end(self):
        self.ends += 1


@pytest.mark.parametrize("entry", ["generate", "generate_ids"])
def test_a_streamer_is_always_ended_once(decoder, entry):
    def call(streamer, prompt=PROMPTS[0], **options):
        options = {"max_new_tokens": 20, "streamer": streamer} | options
        if entry == "generate":
            return decoder.generate(prompt, **options).token_ids
        return decoder.generate_ids(torch.tensor([prompt], device=decoder.model.device), **options)

    good = Streamer()
    call(good)
    assert (good.ends, good.got[0], len(good.got)) == (1, PROMPTS[0], 21)
    for at in (0, 5):  # the prompt's put, a token's
        broken = Streamer(at)
        with pytest.raises(OSError, match="pipe is closed"):
            call(broken)
        assert broken.ends == 1
    refused = Streamer()
    with pytest.raises(UsageError):
        call(refused, max_new_tokens=100_000)
    assert refused.ends == 1
    with pytest.raises(UsageError, match=r"streamer must have put\(ids\) and end\(\).* int lacks put and end"):
        call(5)
    assert len(texts(decoder)) == 3


def test_a_streamer_may_ask_for_another_text(decoder):
    expected = texts(decoder)
    nested = Streamer(decoder=decoder)
    assert decoder.generate(PROMPTS[0], max_new_tokens=18, streamer=nested).token_ids == expected[0]
    assert nested.nested == expected[1][:5]
    assert nested.ends == 1


def test_reading_figures_while_an_engine_is_made_again_makes_no_second_one():
    model = tiny_target()
    ours = AutoregressiveDecoder(model, max_length=200)
    build, made = ours._kept.recipe.build, []

    class Slow:
        turns = ours._kept.recipe.turns

        def build(self, model):
            made.append(threading.get_ident())
            threading.Event().wait(0.3)
            return build(model)

    ours._kept.recipe = Slow()
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, out: out * 0.5)
    threads = [threading.Thread(target=lambda: [ours.engine for _ in range(50)]) for _ in range(3)]
    ours._kept.made = None
    for thread in threads:
        thread.start()
    ours.generate(PROMPTS[0], max_new_tokens=20)
    for thread in threads:
        thread.join(600)
    assert len(made) == 1
