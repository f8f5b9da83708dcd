"""`decoder.generate_batch` has the arguments and the results of transformers' `generate_batch`."""

import dataclasses
import inspect

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousMixin, RequestStatus
from transformers.generation.continuous_batching import requests as theirs

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.errors import UsageError
from radar.generation.generate_batch import _TAKEN, RequestOutput

PROMPTS = [[5, 3, 2, 8], [1], [4, 4, 9, 2, 7, 16]]


@pytest.fixture(scope="module", params=[1, 2])
def decoder(request):
    tree = TreeConfig(total_tokens=16, max_calls=3, tree_top_k=4)
    options = {"draft": tiny_draft(), "policy": FixedDepth(3), "tree": tree, "max_length": 64}
    return RadarDecoder(tiny_target(), **options, max_batch_size=request.param)


def test_the_fields_are_those_of_transformers():
    ours = {field.name for field in dataclasses.fields(RequestOutput)}
    assert {field.name for field in dataclasses.fields(theirs.GenerationOutput)} <= ours
    assert callable(RequestOutput("req_0").is_finished)


def test_defaults_of_transformers_are_taken(decoder):
    for name, parameter in inspect.signature(ContinuousMixin.generate_batch).parameters.items():
        if name in _TAKEN:  # others come and go with transformers' releases, and are refused as unknown
            given = {name: parameter.default}
            assert list(decoder.generate_batch(PROMPTS[:1], max_new_tokens=2, **given)) == ["req_0"]


@pytest.mark.parametrize(
    "name", ["continuous_batching_config", "record_timestamps", "progress_bar", "persistent_manager"]
)
def test_what_cannot_be_honoured_is_refused_by_name(decoder, name):
    with pytest.raises(UsageError, match=f"cannot honour {name}=True"):
        decoder.generate_batch(PROMPTS, **{name: True})


def test_texts_are_those_of_transformers(decoder):
    found = decoder.generate_batch(PROMPTS, max_new_tokens=7)
    assert list(found) == ["req_0", "req_1", "req_2"]
    for (name, one), prompt in zip(found.items(), PROMPTS, strict=True):
        assert (one.request_id, one.prompt_ids, one.error, one.logprobs) == (name, prompt, None, [])
        assert one.generated_tokens == hf_greedy(decoder.model, prompt, 7)
        assert one.status == RequestStatus.FINISHED
        assert one.is_finished()
    end = found["req_0"].generated_tokens[3]
    config = GenerationConfig(max_new_tokens=7, eos_token_id=end, pad_token_id=0)
    ended = decoder.generate_batch(PROMPTS, generation_config=config)["req_0"].generated_tokens
    assert ended == found["req_0"].generated_tokens[: len(ended)]
    assert ended[-1] == end
    assert decoder.generate_batch([]) == {}


def test_pad_tokens_of_a_prompt_are_tokens(decoder):
    found = decoder.generate_batch([[8, 5, 8]], max_new_tokens=5, pad_token_id=8, eos_token_id=16)
    expected = decoder.generate([8, 5, 8], max_new_tokens=5, eos_token_id=16).token_ids
    assert found["req_0"].generated_tokens == expected


def test_every_request_has_a_seed_of_its_own(decoder):
    found = decoder.generate_batch([PROMPTS[0]] * 3, max_new_tokens=6, do_sample=True, seed=4)
    assert [one.generated_tokens for one in found.values()] == [
        decoder.generate(PROMPTS[0], max_new_tokens=6, do_sample=True, seed=4 + k).token_ids for k in range(3)
    ]


def test_a_bad_request_has_its_error_and_the_others_their_texts(decoder):
    def fail(ids, scores):
        if ids[0, 0] == 4:
            raise RuntimeError("broken")
        return False

    prompts = [PROMPTS[0], [], [99], PROMPTS[1], [2] * 60, PROMPTS[2], "text"]
    found = list(decoder.generate_batch(prompts, max_new_tokens=7, stopping_criteria=[fail]).values())
    failed = [one.status == RequestStatus.FAILED for one in found]
    assert failed == [False, True, True, False, True, True, True]
    assert [one.error is not None for one in found] == failed
    assert found[5].error == "broken"
    for k in (0, 3):
        assert found[k].generated_tokens == hf_greedy(decoder.model, prompts[k], 7)


def test_what_is_wrong_for_all_is_raised(decoder):
    with pytest.raises(UsageError, match="unknown argument 'max_new_token'"):
        decoder.generate_batch(PROMPTS, max_new_token=3)
    with pytest.raises(UsageError, match="num_return_sequences here: give the prompt several times"):
        decoder.generate_batch(PROMPTS, num_return_sequences=2, do_sample=True)
    with pytest.raises(UsageError, match="takes a list of prompts, each a list of token ids, got 5"):
        decoder.generate_batch(5)
    with pytest.raises(UsageError, match="cannot honour streamer="):
        decoder.generate_batch(PROMPTS, streamer=print)
    with pytest.raises(UsageError, match=r"prompt ids must be integers of shape|one prompt at a time"):
        decoder.generate_batch(torch.zeros(1, 2, 3, 4, dtype=torch.int64))
