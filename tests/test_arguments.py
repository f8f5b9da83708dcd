"""The table of arguments: complete, the page is made of it, and what it refuses is refused by name everywhere."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import DEVICE, VOCAB, tiny_draft, tiny_target
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

import radar.generation.arguments as arguments
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder
from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS, CALL_ARGUMENTS, TAKEN_BY_TEXT
from radar.generation.options import GenerateOptions

PROMPT = torch.tensor([[5, 3, 2, 8, 1, 4]], device=DEVICE)


@pytest.fixture(scope="module")
def ours():
    return RadarDecoder(tiny_target(), draft=tiny_draft(), policy=FixedDepth(4), max_length=200)


REFUSED = {
    "num_beams": 4, "num_beam_groups": 2, "guidance_scale": 1.5, "penalty_alpha": 0.6,
    "dola_layers": "high", "constraints": [1], "force_words_ids": [[1]], "prompt_lookup_num_tokens": 3,
    "output_attentions": True, "output_hidden_states": True, "use_cache": False, "cache_implementation": "offloaded",
    "low_memory": True, "length_penalty": 2.0, "early_stopping": True, "assistant_early_exit": 2,
    "decoder_start_token_id": 3, "prefill_chunk_size": 4, "num_assistant_tokens": 3, "diversity_penalty": 0.5,
    "is_assistant": True, "max_cache_len": 5, "use_mtp": True, "cache_config": {"a": 1}, "assistant_model": "small",
    "custom_generate": "some/repo", "negative_prompt_ids": PROMPT, "inputs_embeds": torch.zeros(1, 3, 32),
    "synced_gpus": True,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(name, ours):
    for call in (ours.generate_ids, ours.generate, ours.rounds):
        with pytest.raises(UsageError, match=f"RADAR cannot honour {name}="):
            call(PROMPT, max_new_tokens=5, **{name: REFUSED[name]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "text"}, r"takes token ids, a tensor of shape \[B, P\], got 'text': generate takes text"),
        ({"inputs": [[5, 3]]}, "takes token ids, a tensor"),
        ({"inputs": PROMPT.float()}, "integers of shape"),
        ({"input_ids": PROMPT}, "pass the token ids once"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1, 1, 1]])}, "attention_mask with zeros"),
        ({"position_ids": torch.arange(3, 9)[None]}, "positions count from 0"),
        ({"temprature": 0.5}, "unknown argument 'temprature': did you mean 'temperature'"),
        ({"frobnicate": None}, "unknown argument 'frobnicate': known: .*temperature"),
        ({"max_new_tokens": 1000}, "at most 194 fit"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive integer, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a positive integer, got True"),
        ({"max_length": 6}, "an integer above the prompt's 6 tokens, got 6"),
        ({"stop_strings": "x"}, "needs a tokenizer"),
        ({"tools": [1]}, "tools= is an argument of generate, stream, rounds"),
        ({"eos_token_id": VOCAB}, f"a token id or several, 0 to {VOCAB - 1}, got {VOCAB}"),
        ({"eos_token_id": "</s>"}, "got '<'"),
        ({"bad_words_ids": [[VOCAB + 2]]}, f"bad_words_ids names token {VOCAB + 2}"),
        ({"sequence_bias": {(VOCAB, 1): 1.0}}, f"sequence_bias names token {VOCAB}"),
        ({"temperature": -1.0, "do_sample": True}, "transformers does not take these arguments.*strictly positive"),
        ({"top_k": "many", "do_sample": True}, "transformers does not take these arguments"),
        ({"generation_config": {"max_new_tokens": 5}}, "must be a GenerationConfig"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "cannot honour num_beams=3"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"reuse_prefix": "yes"}, "reuse_prefix must be True or False"),
    ],
)
def test_bad_calls_are_refused(options, message, ours):
    with pytest.raises(UsageError, match=message):
        ours.generate_ids(**{"inputs": PROMPT} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "unknown argument 'temprature': did you mean 'temperature'"),
        ({"enable_thinking": False}, "unknown argument 'enable_thinking': known: .*chat_template_kwargs"),
        ({"input_ids": PROMPT}, "input_ids= is an argument of generate_ids"),
        ({"output_scores": True}, "output_scores= is an argument of generate_ids"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate= is an argument of generate_ids"),
        ({"eos_token_id": [3, VOCAB]}, f"got {VOCAB}"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"logit_bias": {VOCAB: 1.0}}, f"names token {VOCAB}, but the vocabulary ends at {VOCAB - 1}"),
        ({"suppress_tokens": "abc"}, "transformers does not take these arguments"),
        ({"stop_strings": [""]}, "needs a tokenizer"),
        ({"generation_config": "greedy"}, "must be a GenerationConfig, got 'greedy'"),
    ],
)
def test_bad_options_of_a_text_are_refused(options, message, ours):
    for call in (ours.generate, ours.rounds):
        with pytest.raises(UsageError, match=message):
            call(PROMPT, **options)


@pytest.mark.parametrize("found", [None, torch.zeros(VOCAB), torch.zeros(1, VOCAB, dtype=torch.int64), 3.0])
def test_a_processor_that_returns_no_scores_is_named(found, ours):
    def odd(ids, scores):
        return found

    for decoder in (ours, AutoregressiveDecoder(ours.model, max_length=64)):
        with pytest.raises(UsageError, match=rf"processor odd must return a float tensor \[1, {VOCAB}\]; it returned"):
            decoder.generate(PROMPT, logits_processor=[odd], max_new_tokens=5)
        assert len(decoder.generate(PROMPT, max_new_tokens=5).token_ids) == 5


@pytest.mark.parametrize("found", [None, "no", torch.zeros(2), torch.zeros(0)])
def test_a_criterion_that_returns_no_flag_is_named(found, ours):
    def odd(ids, scores):
        return found

    with pytest.raises(UsageError, match="stopping criterion odd must return a bool"):
        ours.generate(PROMPT, stopping_criteria=[odd], max_new_tokens=5)
    for good in (np.True_, torch.tensor([True]), torch.tensor(1), True):
        assert len(ours.generate(PROMPT, stopping_criteria=[lambda ids, scores, good=good: good]).token_ids) == 1


def test_every_argument_of_this_transformers_is_in_the_table():
    """Fails where a release brings an argument that nobody has decided on."""
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known - set(ARGUMENTS) == set()
    calls = {name for name in inspect.signature(GenerationMixin.generate).parameters if name not in ("self", "kwargs")}
    assert calls - set(CALL_ARGUMENTS) == set()
    defaults = {k: v for k, v in vars(GenerationConfig()).items() if k in ARGUMENTS}
    defaults |= getattr(GenerationConfig, "_get_default_generation_params", dict)()
    refused = [k for k, v in defaults.items() if ARGUMENTS[k].values is not None and v not in ARGUMENTS[k].values]
    assert refused == []


def test_the_typed_options_are_those_of_the_table():
    assert set(GenerateOptions.__annotations__) == TAKEN_BY_TEXT - {"streamer"}


def test_the_page_is_the_tables():
    page = Path(arguments.__file__).with_name("README.md").read_text()
    assert page == arguments.page(), "run: python -m radar.generation.arguments > radar/generation/README.md"
    assert all(f"\n| `{name}` |" in page for name in ARGUMENTS | CALL_ARGUMENTS if name != "transformers_version")


def test_an_argument_that_is_not_in_the_table_is_refused(ours, monkeypatch):
    monkeypatch.delitem(ARGUMENTS, "typical_p")
    with pytest.raises(UsageError, match="unknown argument 'typical_p'"):
        ours.generate_ids(PROMPT, max_new_tokens=5, typical_p=0.9)
    monkeypatch.setattr(ours.model.generation_config, "typical_p", 0.9)
    with pytest.raises(UsageError, match="unknown argument 'typical_p'"):
        ours.generate(PROMPT, max_new_tokens=5)
