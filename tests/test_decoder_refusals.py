"""What a decoder refuses, before any work, and what it says then."""

import copy
import pickle

import pytest
import torch
from decoders import PROMPT, WordTokenizer, both, make
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, SamplingParams, TreeConfig
from radar.errors import UsageError
from radar.policy.network import PolicyNetwork


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "unknown argument 'temprature': did you mean 'temperature'"),
        ({"stop": "x"}, "unknown argument 'stop': did you mean 'stop_strings'"),
        ({"num_beams": 4}, "cannot honour num_beams=4: beam search is not supported"),
        ({"sampling": SamplingParams(), "top_p": 0.5}, "sampling= or top_p=, not both"),
        ({"sampling": SamplingParams(), "do_sample": True}, "sampling= or do_sample=, not both"),
        ({"sampling": {"temperature": 1}}, "sampling must be SamplingParams"),
        ({"top_p": 0.5}, "top_p has no effect on greedy decoding"),
        ({"top_k": 5, "do_sample": False}, "top_k has no effect on greedy decoding"),
        ({"temperature": 0.5, "do_sample": False}, r"do_sample=False contradicts temperature=0\.5"),
        ({"temperature": 0, "do_sample": True}, "do_sample=True contradicts temperature=0"),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
        ({"temperature": -1}, "temperature must be"),
        ({"max_new_tokens": 5, "max_length": 20}, "max_new_tokens= or max_length=, not both"),
        ({"max_length": 4}, "above the prompt's 4 tokens, got 4"),
        ({"max_length": True}, "max_length must be an integer"),
        ({"max_length": 129}, "at most 124 fit"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or several.*got '<'"),
        ({"eos_token_id": [3, -1]}, "got -1"),
        ({"stop_strings": [""]}, "none empty"),
        ({"stop_strings": []}, "none empty"),
        ({"stopping_criteria": [3]}, "stopping_criteria must hold callables, got 3"),
        ({"logits_processor": ["x"]}, "logits_processor must hold callables, got 'x'"),
        ({"logits_processor": len}, "logits_processor must be a list of callables"),
        ({"logit_bias": {VOCAB: 1.0}}, f"names token {VOCAB}, but the vocabulary ends at {VOCAB - 1}"),
        ({"logit_bias": [1.0]}, "logit_bias must map token ids"),
        ({"eos_token_id": 1.5}, "got 1.5"),
        ({"stop_strings": 5}, "stop_strings must be a string or several"),
        ({"reuse_prefix": "yes"}, "reuse_prefix must be True or False"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message):
    for decoder in both(tokenizer=WordTokenizer()):
        for call in (decoder.rounds, decoder.stream, decoder.generate):
            with pytest.raises(ValueError, match=message):
                call(PROMPT, **options)
    with pytest.raises(ValueError, match="stop_strings needs a tokenizer"):
        make().generate(PROMPT, stop_strings="x")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        (torch.zeros(1, 0, dtype=torch.int64), "the prompt is empty"),
        (torch.zeros(2, 3, dtype=torch.int64), r"one prompt at a time.*\[2, 3\]"),
        (torch.zeros(3), "must be integers"),
        ([1, VOCAB], rf"from 0 to {VOCAB - 1}, got {VOCAB}"),
        ([1, -1], "got -1"),
        ([1, True], "got True"),
        ([1.5], r"got 1\.5"),
        (None, "a prompt is text, token ids .* or chat messages, got None"),
        ([1] * 128, "128 tokens and the cache holds max_length=128"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(prompt, message):
    for decoder in both(tokenizer=WordTokenizer()):
        with pytest.raises(ValueError, match=message):
            decoder.rounds(prompt)
        with pytest.raises(ValueError, match=message):
            decoder.generate(prompt, max_new_tokens=5)


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "3"])
def test_bad_limits_are_refused(limit):
    for decoder in both():
        with pytest.raises(ValueError, match="max_new_tokens must be a positive integer"):
            decoder.generate(PROMPT, max_new_tokens=limit)


def test_a_limit_that_does_not_fit_says_what_fits():
    with pytest.raises(ValueError, match="at most 124 fit"):
        make().generate(PROMPT, max_new_tokens=125)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        make().generate("w1 w2")
    with pytest.raises(ValueError, match="stream needs a tokenizer"):
        make().stream(PROMPT)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="it proposes ids up to 18, the target's vocabulary ends at 16"):
        RadarDecoder(tiny_target(), draft=tiny_draft(vocab_size=19), max_length=64)
    with pytest.raises(ValueError, match="reads features of size 32, the target's are 64"):
        RadarDecoder(tiny_target(hidden_size=64), draft=tiny_draft(), max_length=64)
    with pytest.raises(ValueError, match=r"reads 3 taps, got tap_layers=\(1, 2\)"):
        RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=64, tap_layers=(1, 2))
    with pytest.raises(ValueError, match=r"vocabulary of 13 is less than tree_top_k=14"):
        make(tree=TreeConfig(tree_top_k=14))
    with pytest.raises(ValueError, match=r"needs TreeConfig\(max_calls=9\)"):
        make(FixedDepth(9))
    with pytest.raises(ValueError, match=r"10.*4|4.*10"):
        make(RadarPolicy(PolicyNetwork()), tree=TreeConfig(tree_top_k=4))


def test_a_head_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"it is torch\.float64 on .*, the target torch\.float32"):
        RadarDecoder(tiny_target(), draft=tiny_draft().double(), max_length=64)


@pytest.mark.parametrize("length", [0, 1, -5, 2.5, True])
def test_bad_cache_lengths_are_refused(length):
    with pytest.raises(ValueError, match="max_length must be an integer of 2 or more"):
        RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=length)
    with pytest.raises(ValueError, match="max_length must be an integer of 2 or more"):
        AutoregressiveDecoder(tiny_target(), max_length=length)


def test_from_pretrained_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="pass target="):
        RadarDecoder.from_pretrained(draft=tmp_path)
    with pytest.raises(ValueError, match="pass draft="):
        RadarDecoder.from_pretrained(target=tmp_path)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda how: how.__name__)
def test_what_shares_caches_is_not_copied(how):
    """A copy would not know whose text they hold, and one of a text would end the original when it goes."""
    for decoder in both():
        text = decoder.rounds(PROMPT, max_new_tokens=9)
        first = next(text).tokens
        with pytest.raises(UsageError, match="cannot be copied or pickled: make another one"):
            how(decoder)
        with pytest.raises(UsageError, match="cannot be copied or pickled: take its token_ids"):
            how(text)
        rest = [token for item in text for token in item.tokens]
        assert [*first, *rest] == decoder.generate(PROMPT, max_new_tokens=9).token_ids


def test_what_a_decoder_was_made_for_stays():
    for decoder in both():
        for name in ("model", "max_length"):
            with pytest.raises(AttributeError):
                setattr(decoder, name, getattr(decoder, name))
