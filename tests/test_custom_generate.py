"""`custom_generate` and streamers: RADAR behind transformers' own call, and tokens to whom they are promised."""

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, GenerationConfig, StopStringCriteria, TextStreamer

from radar import FixedDepth, RadarDecoder, TreeConfig, radar_generate
from radar.errors import UsageError

PROMPT = torch.tensor([[5, 3, 2, 8, 1, 4]], device=DEVICE)
TREE = TreeConfig(total_tokens=20, max_calls=6)
ASSETS = Path(str(files("radar"))) / "assets"


@pytest.fixture(scope="module")
def model():
    return tiny_target()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(ASSETS / "target"))


@pytest.fixture(scope="module")
def ours(model):
    return RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(4), tree=TREE, max_length=200)


@pytest.fixture(scope="module")
def embedded():
    return RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=256)


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.prompt, self.tokens, self.ended = None, [], 0

    def put(self, value):
        if self.prompt is None:
            self.prompt = value.tolist()
        else:
            assert value.shape == (1,)
            self.tokens.append(int(value))

    def end(self):
        self.ended += 1


def radar(**options):
    return radar_generate(draft=tiny_draft(), policy=FixedDepth(4), tree=TREE, max_length=200, **options)


def test_a_streamer_gets_the_prompt_the_tokens_and_the_end(ours, model):
    theirs, mine, other = Recorder(), Recorder(), Recorder()
    model.generate(PROMPT, streamer=theirs, max_new_tokens=20)
    ours.generate_ids(PROMPT, streamer=mine, max_new_tokens=20)
    ours.generate(PROMPT, streamer=other, max_new_tokens=20)
    for found in (mine, other):
        assert (found.prompt, found.tokens, found.ended) == (theirs.prompt, theirs.tokens, 1)


def test_a_streamer_ends_after_an_error_too(ours):
    def broken(ids, scores):
        raise KeyError("broken")

    streamer = Recorder()
    with pytest.raises(KeyError, match="broken"):
        ours.generate(PROMPT, streamer=streamer, logits_processor=[broken])
    assert streamer.ended == 1


def test_custom_generate(model):
    radar_text = radar()
    theirs, mine = Recorder(), Recorder()
    expected = model.generate(PROMPT, max_new_tokens=40, repetition_penalty=1.1, streamer=theirs)
    found = model.generate(PROMPT, max_new_tokens=40, repetition_penalty=1.1, streamer=mine, custom_generate=radar_text)
    assert found.tolist() == expected.tolist()
    assert (mine.prompt, mine.tokens, mine.ended) == (theirs.prompt, theirs.tokens, 1)
    assert radar_text.decoder.metrics.num_draft_calls > 0
    decoder = radar_text.decoder
    sampled = [
        model.generate(PROMPT, do_sample=True, seed=s, max_new_tokens=30, custom_generate=radar_text).tolist()
        for s in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert radar_text.decoder is decoder
    other = tiny_target(seed=3)
    assert other.generate(PROMPT, max_new_tokens=20, custom_generate=radar_text).tolist() == (
        other.generate(PROMPT, max_new_tokens=20).tolist()
    )
    with pytest.raises(UsageError, match="num_beams=3: beam search is not supported"):
        model.generate(PROMPT, num_beams=3, custom_generate=radar_text)
    with pytest.raises(UsageError, match="assistant_model"):
        model.generate(PROMPT, assistant_model=other, custom_generate=radar_text)
    with pytest.raises(UsageError, match="pass draft="):
        radar_generate(policy=FixedDepth(2))


def test_a_models_own_limit_is_clipped_and_one_asked_for_is_not(monkeypatch):
    model, text = tiny_target(), radar()
    monkeypatch.setattr(model.generation_config, "max_length", 4096)
    assert model.generate(PROMPT, custom_generate=text).shape == (1, 200)
    with pytest.raises(UsageError, match="at most 194 fit"):
        model.generate(PROMPT, max_new_tokens=1000, custom_generate=text)


def test_threads_share_what_decodes(monkeypatch):
    """One decoder is made for a model, also where two calls come at once, and none is taken away under a call."""
    models, text, made = [tiny_target(), tiny_target(seed=3)], radar(), []
    expected = [model.generate(PROMPT, max_new_tokens=30).tolist() for model in models]
    build = RadarDecoder.__init__

    def slow(self, model, **options):
        made.append(model)
        time.sleep(0.1)
        build(self, model, **options)

    monkeypatch.setattr(RadarDecoder, "__init__", slow)

    def call(index):
        return models[index].generate(PROMPT, max_new_tokens=30, custom_generate=text).tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, [0, 0, 0, 0])) == [expected[0]] * 4
        assert len(made) == 1
        order = [0, 1, 0, 1, 1, 0]
        assert list(pool.map(call, order)) == [expected[index] for index in order]


def test_one_decoder_serves_a_model_and_its_adapters_and_goes_into_no_copy(model):
    text = radar()
    copies = [copy.deepcopy(text), pickle.loads(pickle.dumps(text))]
    model.generate(PROMPT, max_new_tokens=5, custom_generate=text)
    assert text.decoder is not None
    assert [other.decoder for other in (*copies, copy.copy(text))] == [None] * 3
    wrapped, first = get_peft_model(model, LoraConfig(target_modules=["q_proj"])), text.decoder
    wrapped.generate(input_ids=PROMPT, max_new_tokens=5, custom_generate=text)
    assert text.decoder is first
    wrapped.unload()


def test_a_streamer_ends_where_no_decoder_can_be_made(model):
    streamer = Recorder()
    wrong = radar_generate(draft=tiny_draft(vocab_size=40), max_length=200)
    with pytest.raises(UsageError, match="does not fit this target"):
        model.generate(PROMPT, custom_generate=wrong, max_new_tokens=5, streamer=streamer)
    assert streamer.ended == 1


@pytest.mark.slow
def test_stop_strings_end_where_transformers_ends(tokenizer, embedded):
    """On the embedded pair, whose tokens are real ones."""
    text = "def fibonacci(n):"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    free = tokenizer.decode(embedded.generate_ids(ids, max_new_tokens=40)[0, ids.shape[1] :])
    stops = {free[i : i + n] for i in range(2, len(free) - 6, 21) for n in (1, 2, 5)} | {"never to be seen"}
    lengths = set()
    for stop in sorted(stops):
        options = {"stop_strings": [stop, "another"], "tokenizer": tokenizer, "max_new_tokens": 40}
        expected = embedded.model.generate(ids, **options)
        assert embedded.generate_ids(ids, **options).tolist() == expected.tolist(), stop
        found = embedded.generate(text, stop_strings=stop, max_new_tokens=40)
        assert found.token_ids == expected[0, ids.shape[1] :].tolist()
        lengths.add(expected.shape[1])
    assert len(lengths) > 4
    config = GenerationConfig(stop_strings=["\n"], max_new_tokens=40)
    criteria = [StopStringCriteria(tokenizer, ["\n"])]
    assert embedded.generate_ids(ids, generation_config=config).tolist() == (
        embedded.generate_ids(ids, stopping_criteria=criteria, max_new_tokens=40).tolist()
    )
    assert config.stop_strings == ["\n"]  # the caller's config is left alone


def test_custom_generate_takes_stop_strings(tokenizer, embedded):
    """transformers reads the tokenizer out of the call and drops it, so that its own check fails."""
    radar_text = radar_generate(draft=ASSETS / "draft", max_length=128)
    ids = tokenizer("def fibonacci(n):", return_tensors="pt")["input_ids"]
    options = {"stop_strings": ["\n"], "tokenizer": tokenizer, "max_new_tokens": 40}
    expected = embedded.model.generate(ids, **options)
    assert expected.shape[1] < ids.shape[1] + 40
    assert embedded.model.generate(ids, custom_generate=radar_text, **options).tolist() == expected.tolist()


def test_text_streamer_prints_the_text(tokenizer, embedded, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    out = embedded.generate("Once upon a time", streamer=streamer, max_new_tokens=20)
    assert capsys.readouterr().out.strip() == out.text.strip()
