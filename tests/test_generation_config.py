"""The model's generation config is the default of every entry, and arguments override it: texts are `generate`'s."""

import time
from contextlib import contextmanager

import pytest
import torch
from fakes import DEVICE, VOCAB, tiny_draft, tiny_target
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.utils import logging

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, TreeConfig, radar_generate
from radar.errors import UsageError
from radar.generation.call import make_request
from radar.generation.prompt import EncodedPrompt

logging.set_verbosity_error()
PROMPT = torch.tensor([[5, 3, 2, 8, 1, 4]], device=DEVICE)
MODEL = tiny_target()
TREE = TreeConfig(total_tokens=16, max_calls=4)
OURS = RadarDecoder(MODEL, draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, max_length=64)
PLAIN = AutoregressiveDecoder(MODEL, max_length=64)
CUSTOM = radar_generate(draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, max_length=64)


@contextmanager
def configured(**values):
    """The model with these values in its generation config."""
    kept = MODEL.generation_config
    MODEL.generation_config = GenerationConfig(**values)
    try:
        yield
    finally:
        MODEL.generation_config = kept


def request(**options):
    return make_request(EncodedPrompt(PROMPT[0].tolist(), is_chat=False), options, PLAIN.context())


def texts(**options):
    """Of every entry, without the prompt."""
    yield OURS.generate(PROMPT, **options).token_ids
    yield [token for item in PLAIN.rounds(PROMPT, **options) for token in item.tokens]
    for found in (
        PLAIN.generate_ids(PROMPT, **options),
        OURS.generate_ids(PROMPT, **options),
        MODEL.generate(PROMPT, custom_generate=CUSTOM, **options),
    ):
        yield found[0, PROMPT.shape[1] :].tolist()


TOKEN = st.integers(0, VOCAB - 1)
TOKENS = st.lists(TOKEN, min_size=1, max_size=3, unique=True)
VALUES = {
    "repetition_penalty": st.floats(0.5, 3.0),
    "suppress_tokens": TOKENS,
    "begin_suppress_tokens": TOKENS,
    "bad_words_ids": st.lists(st.lists(TOKEN, min_size=1, max_size=2), min_size=1, max_size=3),
    "sequence_bias": st.dictionaries(st.tuples(TOKEN), st.floats(-4, 4), min_size=1, max_size=3),
    "no_repeat_ngram_size": st.integers(2, 3),
    "encoder_repetition_penalty": st.floats(0.5, 2.0),
    "min_new_tokens": st.integers(1, 6),
    "min_length": st.integers(1, 12),
    "eos_token_id": TOKEN | TOKENS,
    "max_new_tokens": st.integers(1, 10),
    "renormalize_logits": st.just(True),
    "length_penalty": st.just(0.7),
    "use_cache": st.booleans(),
    "num_assistant_tokens": st.just(5),
}


@pytest.mark.slow
@settings(max_examples=20, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(
    config=st.fixed_dictionaries({"pad_token_id": st.just(0)}, optional=VALUES),
    options=st.fixed_dictionaries({}, optional={n: VALUES[n] for n in ("repetition_penalty", "suppress_tokens",
                                                                      "eos_token_id", "min_new_tokens")}),
)  # fmt: skip
def test_any_config_gives_generates_text(config, options):
    if "max_new_tokens" not in config:
        options = options | {"max_new_tokens": 10}
    with configured(**config):
        expected = MODEL.generate(PROMPT, **options)[0, PROMPT.shape[1] :].tolist()
        assert list(texts(**options)) == [expected] * 5


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_k": 5, "top_p": 0.95, "max_new_tokens": 20}


def test_a_config_that_samples_samples_here_too():
    """With the parameters it names, as if they were arguments; one seed is one text for every entry."""
    named = PLAIN.generate(PROMPT, temperature=0.6, top_k=5, top_p=0.95, max_new_tokens=20, seed=3).token_ids
    with configured(**SAMPLED):
        assert list(texts(seed=3)) == [named] * 5
        assert PLAIN.generate(PROMPT, seed=4).token_ids != named
        greedy = MODEL.generate(PROMPT, do_sample=False)[0, PROMPT.shape[1] :].tolist()
        for options in ({"temperature": 0}, {"do_sample": False}, {"sampling": SamplingParams()}):
            assert PLAIN.generate(PROMPT, **options).token_ids == greedy
        hot = {"temperature": 3.0, "seed": 3, "max_new_tokens": 20}
        assert PLAIN.generate(PROMPT, **hot).token_ids == (
            PLAIN.generate(PROMPT, sampling=SamplingParams(temperature=3.0, top_k=5, top_p=0.95, seed=3)).token_ids
        )
        # a filter alone: the config samples
        assert request(top_k=2, seed=3).sampling == SamplingParams(temperature=0.6, top_k=2, top_p=0.95, seed=3)
    # transformers' own default
    assert request(temperature=0.5, seed=1).sampling == SamplingParams(temperature=0.5, top_k=50, seed=1)


def test_without_a_seed_torchs_counts_and_greedy_text_draws_nothing():
    torch.manual_seed(1)
    first = PLAIN.generate(PROMPT, temperature=2.0, max_new_tokens=20).token_ids
    torch.manual_seed(1)
    PLAIN.generate(PROMPT, max_new_tokens=5)
    assert PLAIN.generate(PROMPT, temperature=2.0, max_new_tokens=20).token_ids == first
    assert PLAIN.generate(PROMPT, temperature=2.0, max_new_tokens=20).token_ids != first


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"max_length": 4096}, {"max_new_tokens": 4096}, {"max_length": 20}])
def test_a_limit_that_nobody_asked_for_is_clipped(limit):
    with configured(pad_token_id=0, **limit):
        length = min(64, *limit.values())
        expected = MODEL.generate(PROMPT, max_new_tokens=length - 6)[0, 6:].tolist()
        assert list(texts()) == [expected] * 5
        assert OURS.generate(PROMPT).finish_reason == "length"
        for call in (OURS.generate, OURS.generate_ids):
            with pytest.raises(UsageError, match="at most 58 fit"):
                call(PROMPT, max_new_tokens=59)


def test_a_forced_end_comes_at_the_end_of_the_cache():
    with configured(pad_token_id=0, eos_token_id=4, max_length=4096, forced_eos_token_id=4):
        assert OURS.generate(PROMPT).token_ids[-1] == 4


def test_a_stop_string_of_the_config_needs_a_tokenizer():
    with configured(stop_strings=["x"]), pytest.raises(UsageError, match="stop_strings needs a tokenizer"):
        OURS.generate(PROMPT)


def test_a_config_that_cannot_be_honoured_is_refused_by_name():
    with configured(num_beams=4), pytest.raises(UsageError, match="num_beams=4 of the model's generation config: beam"):
        OURS.generate(PROMPT)
    with configured(num_beams=4):
        assert OURS.generate(PROMPT, num_beams=1, max_new_tokens=3).token_ids


def test_what_a_config_says_beside_the_text_is_let_pass():
    expected = OURS.generate(PROMPT, max_new_tokens=9).token_ids
    ways = {"use_cache": False, "cache_implementation": "static", "prefill_chunk_size": 4, "max_new_tokens": 9}
    with configured(**ways, return_dict_in_generate=True, output_attentions=True, an_entry_of_its_own="x"):
        assert OURS.generate(PROMPT).token_ids == expected


def test_a_prompt_has_no_padding_whatever_its_ids_are():
    with configured(pad_token_id=3, eos_token_id=9):
        assert PLAIN.generate(PROMPT, max_new_tokens=5).token_ids


def test_a_calls_own_config_comes_between():
    own = GenerationConfig(max_new_tokens=11, repetition_penalty=1.4, temperature=0.3)
    with configured(repetition_penalty=1.1, suppress_tokens=[3], pad_token_id=0):
        expected = MODEL.generate(PROMPT, generation_config=own)[0, PROMPT.shape[1] :].tolist()
        assert list(texts(generation_config=own)) == [expected] * 5
        other = MODEL.generate(PROMPT, max_new_tokens=11, repetition_penalty=2.0)[0, PROMPT.shape[1] :].tolist()
        assert OURS.generate(PROMPT, generation_config=own, repetition_penalty=2.0).token_ids == other


@pytest.mark.parametrize(
    ("own", "argument"), [({"max_new_tokens": 11}, {"max_length": 15}), ({"max_length": 15}, {"max_new_tokens": 11})]
)
def test_a_limit_that_is_an_argument_comes_before_the_calls_own_config(own, argument):
    expected = MODEL.generate(PROMPT, pad_token_id=0, generation_config=GenerationConfig(**own), **argument)[0, 6:]
    config = GenerationConfig(**own)
    assert OURS.generate(PROMPT, generation_config=config, **argument).token_ids == expected.tolist()
    found = OURS.generate_ids(PROMPT, generation_config=config, pad_token_id=0, **argument)
    assert found[0, 6:].tolist() == expected.tolist()


def test_both_limits_at_once():
    """`generate` says that one is too many; transformers takes the number of new tokens."""
    limits = {"max_length": 15, "max_new_tokens": 11}
    with pytest.raises(UsageError, match="not both"):
        OURS.generate(PROMPT, **limits)
    assert OURS.generate_ids(PROMPT, **limits).tolist() == MODEL.generate(PROMPT, pad_token_id=0, **limits).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"suppress_tokens": [2, 7]}, {"bad_words_ids": [[3], [4]]}, {"sequence_bias": {(3,): 4.0}},
        {"logit_bias": {3: 4.0, 5: -2}}, {"logit_bias": {3: 1.0}, "sequence_bias": {(3,): 3.0}, "top_k": 4},
        {"repetition_penalty": 1.5, "suppress_tokens": [1], "temperature": 0.5, "min_p": 0.1},
    ],
)  # fmt: skip
def test_what_kernels_can_do_stays_in_them_and_is_what_processors_do(options):
    options = options | {"max_new_tokens": 30, "seed": 2, "do_sample": True}
    found = OURS.generate(PROMPT, **options)
    on_host = OURS.generate(PROMPT, **options, logits_processor=[lambda ids, scores: scores])
    assert (found.metrics.num_host_processed_tokens, on_host.metrics.num_host_processed_tokens) == (0, 30)
    assert found.token_ids == on_host.token_ids


def test_scores_are_kept_where_they_are_asked_for_and_nowhere_else():
    seen = []

    def criterion(ids, scores):
        seen.append(None if scores is None else len(scores))
        return False

    identity = [lambda ids, scores: scores]
    rounds = list(OURS.rounds(PROMPT, logits_processor=identity, stopping_criteria=[criterion], max_new_tokens=9))
    assert {(item.logits, item.scores, item.is_host_processed) for item in rounds} == {(None, None, True)}
    assert seen == [None] * 9
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3}
    OURS.generate_ids(PROMPT, stopping_criteria=[criterion], **options)
    assert seen[9:] == [1, 2, 3]


def test_preparing_a_call_takes_little():
    """1 to 2 ms: less than 20 forwards of a model of five tiny layers, however busy the machine is."""

    def seconds(work):
        started = time.perf_counter()
        for _ in range(20):
            work()
        return time.perf_counter() - started

    forward, prepare = (
        min(seconds(work) for _ in range(3))
        for work in (lambda: MODEL(PROMPT), lambda: request(max_new_tokens=5, temperature=0.5))
    )
    assert prepare < 20 * forward
