"""Any options of a generation: the plain decoder's text, or the same clear refusal from every decoder."""

import math

import pytest
import torch
from fakes import VOCAB, tiny_draft, tiny_target
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import BatchError

ODD = st.sampled_from([True, False, -1, 0, 1, 3, 10**9, 0.5, -0.5, 2.5, math.nan, math.inf, "", "x", [], {}, [None]])
LIKELY = {
    "top_p": st.floats(0.1, 1.0),
    "top_k": st.integers(0, 30),
    "min_p": st.floats(0.0, 0.9),
    "repetition_penalty": st.floats(0.5, 3.0),
    "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5.0, 5.0), max_size=3),
    "seed": st.integers(0, 2**63 - 1),
    "do_sample": st.just(True),
    "eos_token_id": st.lists(st.integers(0, VOCAB - 1), max_size=2) | st.integers(0, VOCAB - 1),
    "stopping_criteria": st.just([lambda ids, scores: int(ids[0, -1]) == 3 and ids.shape[1] % 2 == 0]),
    "logits_processor": st.just([lambda ids, scores: scores.roll(1, -1) if ids.shape[1] % 3 == 0 else scores]),
    "reuse_prefix": st.booleans(),
}
NAMES = st.sampled_from(
    [*LIKELY, "max_new_tokens", "max_length", "temperature", "stop_strings", "sampling", "nonsense"]
)
MODEL = tiny_target()
PLAIN = AutoregressiveDecoder(MODEL, max_length=64)
OURS = RadarDecoder(MODEL, draft=tiny_draft(), policy=FixedDepth(3), max_length=64,
                    tree=TreeConfig(total_tokens=16, max_calls=4))  # fmt: skip


def outcome(decoder, prompt, options):
    try:
        found = decoder.generate(prompt, **options)
    except (ValueError, BatchError) as error:
        return str(error) or "no message"
    return [one.token_ids for one in found] if isinstance(found, list) else found.token_ids


def is_prompt(ids):
    return isinstance(ids, list) and bool(ids) and all(type(token) is int and 0 <= token < VOCAB for token in ids)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    options=st.fixed_dictionaries({"temperature": st.floats(0.1, 3.0)}, optional=LIKELY),
    odd=st.dictionaries(NAMES, ODD, max_size=1),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
)
def test_any_options_give_the_plain_text_or_a_clear_refusal(options, odd, prompt):
    options = {"seed": 1} | ({} if "max_length" in odd else {"max_new_tokens": 12}) | options
    ours = outcome(OURS, prompt, options | odd)
    assert ours == outcome(PLAIN, prompt, options | odd)
    assert ours != "no message"
    assert odd or isinstance(ours, list), ours


@settings(max_examples=100, deadline=None)
@example([[0], [1, 2]])
@example([[0], None])
@given(st.recursive(st.none() | ODD | st.integers(-2, VOCAB + 1) | st.text(max_size=3), st.lists, max_leaves=6))
@pytest.mark.slow
def test_any_prompt_is_decoded_or_refused(prompt):
    found = outcome(OURS, prompt, {"max_new_tokens": 2})
    are_many = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], list)
    assert isinstance(found, list) == (all(map(is_prompt, prompt)) if are_many else is_prompt(prompt)), found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=3), st.sampled_from([torch.int64, torch.int32, torch.float32]))
def test_any_tensor_is_decoded_or_refused(shape, dtype):
    found = outcome(OURS, torch.ones(shape, dtype=dtype), {"max_new_tokens": 2})
    good = dtype != torch.float32 and len(shape) in (1, 2) and shape[-1] > 0 and (len(shape) == 1 or shape[0] == 1)
    assert isinstance(found, list) == good, found
