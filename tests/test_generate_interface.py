"""`generate_ids` and `custom_generate` take what transformers' `generate` takes, or refuse it by name."""

import pytest
import torch
from fakes import DEVICE, VOCAB, tiny_draft, tiny_target
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarGenerateOutput, TreeConfig

PROMPT = torch.tensor([[5, 3, 2, 8, 1, 4]], device=DEVICE)
TREE = TreeConfig(total_tokens=20, max_calls=6)


@pytest.fixture(scope="module")
def model():
    return tiny_target()


@pytest.fixture(scope="module")
def ours(model):
    return RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(4), tree=TREE, max_length=200)


@pytest.fixture(scope="module")
def plain(model):
    return AutoregressiveDecoder(model, max_length=200)


class NoRepeat(LogitsProcessor):
    """Forbids what the text's last three tokens are, and notes every text it is asked about."""

    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        self.texts.append(input_ids[0].tolist())
        scores = scores.clone()
        scores[0, input_ids[0, -3:]] = -torch.inf
        return scores


class EvenLength(StoppingCriteria):
    """Ends a text at a certain token, if its length is even."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        wanted = int(input_ids[0, -1]) == self.token and input_ids.shape[1] % 2 == 0
        return torch.tensor([wanted], device=input_ids.device)


# all of them greedy: transformers' own noise is another one
GREEDY = {
    "nothing": {},
    "max_length": {"max_length": 31},
    "eos_token_id": {"eos_token_id": [9, 11], "pad_token_id": 0, "max_new_tokens": 60},
    "min_new_tokens": {"eos_token_id": [9, 11, 3], "pad_token_id": 0, "min_new_tokens": 12, "max_new_tokens": 60},
    "repetition_penalty": {"repetition_penalty": 1.3, "max_new_tokens": 40},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "max_new_tokens": 40},
    "encoder": {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2, "max_new_tokens": 40},
    "bad_words_ids": {"bad_words_ids": [[3], [4, 5]], "max_new_tokens": 40},
    "suppress_tokens": {"suppress_tokens": [2, 7], "begin_suppress_tokens": [1], "max_new_tokens": 40},
    "sequence_bias": {"sequence_bias": {(3,): 4.0, (2, 5): -3.0}, "max_new_tokens": 40},
    "forced_eos_token_id": {"forced_eos_token_id": 4, "eos_token_id": 4, "pad_token_id": 0, "max_new_tokens": 25},
    "length_penalty": {
        "exponential_decay_length_penalty": (5, 1.5), "eos_token_id": 4, "pad_token_id": 0, "max_new_tokens": 40,
    },
    "remove_invalid_values": {"remove_invalid_values": True, "renormalize_logits": True, "max_new_tokens": 30},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=3.0), "max_new_tokens": 30},
    "generation_config": {"generation_config": GenerationConfig(max_new_tokens=33, repetition_penalty=1.2)},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda batch, ids: list(range(int(ids[-1]) % 2, VOCAB, 2)), "max_new_tokens": 40,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_texts_are_those_of_transformers(name, model, ours, plain):
    expected = model.generate(PROMPT, do_sample=False, **GREEDY[name])
    for decoder in (ours, plain):
        found = decoder.generate_ids(PROMPT, do_sample=False, **GREEDY[name])
        assert found.tolist() == expected.tolist()
        assert (found.dtype, found.device) == (expected.dtype, expected.device)


def test_the_inputs_may_be_named(model, ours):
    expected = model.generate(PROMPT, max_new_tokens=20).tolist()
    mask = torch.ones_like(PROMPT)
    assert ours.generate_ids(input_ids=PROMPT, attention_mask=mask, max_new_tokens=20).tolist() == expected
    assert ours.generate_ids(inputs=PROMPT, num_return_sequences=1, num_beams=1, max_new_tokens=20).tolist() == expected
    nothing = dict.fromkeys(("num_return_sequences", "num_beams", "custom_generate", "assistant_model", "use_cache"))
    assert ours.generate_ids(inputs=PROMPT, max_new_tokens=20, **nothing).tolist() == expected


def test_the_models_own_generation_config_counts(ours):
    model = tiny_target()
    model.generation_config.update(repetition_penalty=1.3, max_new_tokens=17)
    decoder = RadarDecoder(model, draft=tiny_draft(), tree=TREE, policy=FixedDepth(3), max_length=64)
    assert decoder.generate_ids(PROMPT).tolist() == model.generate(PROMPT).tolist()
    assert decoder.generate_ids(PROMPT).tolist() != ours.generate_ids(PROMPT, max_new_tokens=17).tolist()


def test_processors_are_called_once_a_token_with_the_text_so_far(model, ours, plain):
    theirs, mine, third = NoRepeat(), NoRepeat(), NoRepeat()
    expected = model.generate(PROMPT, logits_processor=LogitsProcessorList([theirs]), max_new_tokens=40)
    before = ours.metrics.num_host_processed_tokens
    assert ours.generate_ids(PROMPT, logits_processor=[mine], max_new_tokens=40).tolist() == expected.tolist()
    assert mine.texts == theirs.texts
    assert ours.metrics.num_host_processed_tokens - before == 40
    assert plain.generate_ids(PROMPT, logits_processor=[third], max_new_tokens=40).tolist() == expected.tolist()
    assert third.texts == theirs.texts


def test_no_processor_is_asked_behind_the_end(model, ours):
    free = model.generate(PROMPT, logits_processor=[NoRepeat()], max_new_tokens=60)[0, PROMPT.shape[1] :].tolist()
    for end in sorted(set(free)):
        processor = NoRepeat()
        options = {"eos_token_id": end, "pad_token_id": 0, "max_new_tokens": 60}
        found = ours.generate_ids(PROMPT, logits_processor=[processor], **options)
        assert found[0, PROMPT.shape[1] :].tolist() == free[: free.index(end) + 1]
        assert not any(end in text[PROMPT.shape[1] :] for text in processor.texts)


@pytest.mark.parametrize("token", range(0, VOCAB, 2))
def test_stopping_criteria_cut_exactly(model, ours, token):
    criteria = StoppingCriteriaList([EvenLength(token)])
    expected = model.generate(PROMPT, stopping_criteria=criteria, max_new_tokens=50)
    assert ours.generate_ids(PROMPT, stopping_criteria=criteria, max_new_tokens=50).tolist() == expected.tolist()


def test_time_ends_a_text(ours):
    assert ours.generate_ids(PROMPT, stopping_criteria=[MaxTimeCriteria(0.0)], max_new_tokens=50).shape[1] == 7
    assert ours.generate_ids(PROMPT, max_time=0.0, max_new_tokens=50).shape[1] == 7


def test_scores_and_logits_are_those_of_transformers(model, ours, plain):
    for options in ({}, {"repetition_penalty": 1.3}, {"logits_processor": [NoRepeat()]}):
        options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True} | options
        expected = model.generate(PROMPT, max_new_tokens=21, **options)
        for decoder in (ours, plain):
            found = decoder.generate_ids(PROMPT, max_new_tokens=21, **options)
            assert isinstance(found, GenerateDecoderOnlyOutput)
            assert found.sequences.tolist() == expected.sequences.tolist()
            for name in ("scores", "logits"):
                rows, wanted = getattr(found, name), getattr(expected, name)
                assert len(rows) == len(wanted) == 21
                torch.testing.assert_close(torch.cat(rows), torch.cat(wanted), rtol=1e-4, atol=1e-4)
            assert found.metrics.num_tokens == found.metrics.num_host_processed_tokens == 21


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 6, "top_p": 0.9},
        {"typical_p": 0.8},
        {"epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
        {"top_h": 0.5, "top_k": 0},
        {"renormalize_logits": True, "min_p": 0.1},
    ],
)
def test_sampled_scores_are_filtered_like_those_of_transformers(options, model, ours):
    options = {"do_sample": True} | options
    out = ours.generate_ids(
        PROMPT, return_dict_in_generate=True, output_scores=True, max_new_tokens=15, seed=3, **options
    )
    for index, row in enumerate(out.scores):
        text = out.sequences[:, : PROMPT.shape[1] + index]
        theirs = model.generate(text, return_dict_in_generate=True, output_scores=True, max_new_tokens=1, **options)
        torch.testing.assert_close(row, theirs.scores[0], rtol=1e-4, atol=1e-4)
        assert row[0, out.sequences[0, text.shape[1]]] > -torch.inf
    assert out.logits is None
    (out.scores[0] * torch.ones((), device=DEVICE, requires_grad=True)).sum().backward()  # ordinary tensors


def test_a_dict_without_scores_stays_in_the_kernels(ours):
    out = ours.generate_ids(PROMPT, return_dict_in_generate=True, max_new_tokens=12)
    assert isinstance(out, RadarGenerateOutput)
    assert (out.scores, out.logits, out.metrics.num_host_processed_tokens) == (None, None, 0)
    assert out.metrics.num_tokens == 12


SAMPLED = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"top_p": 0.8, "top_k": 0, "repetition_penalty": 1.3},
    {"min_p": 0.05, "top_k": 9},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_one_seed_one_text_in_the_kernels_and_on_the_host(options, ours, plain):
    """Temperature, filters and penalty by our kernels and by transformers' processors choose the same tokens."""
    texts = []
    options = {"do_sample": True, "max_new_tokens": 40} | options
    for decoder in (ours, plain):
        texts.append(decoder.generate_ids(PROMPT, seed=5, **options).tolist())
        out = decoder.generate_ids(PROMPT, seed=5, return_dict_in_generate=True, output_scores=True, **options)
        texts.append(out.sequences.tolist())
    assert all(text == texts[0] for text in texts)
    assert ours.generate_ids(PROMPT, seed=6, **options).tolist() != texts[0]


def test_loose_names_mean_the_same_in_generate(ours):
    options = {"temperature": 0.8, "top_k": 7, "repetition_penalty": 1.2, "seed": 4, "max_new_tokens": 40}
    expected = ours.generate_ids(PROMPT, do_sample=True, **options)[0, PROMPT.shape[1] :].tolist()
    assert ours.generate(PROMPT, **options).token_ids == expected
    on_host = ours.generate(PROMPT, logits_processor=[lambda ids, scores: scores], **options)
    assert on_host.token_ids == expected
    assert on_host.metrics.num_host_processed_tokens == 40


def test_without_a_seed_torchs_counts(ours):
    def text():
        return ours.generate_ids(PROMPT, do_sample=True, temperature=2.0, max_new_tokens=30).tolist()

    torch.manual_seed(1)
    first = text()
    assert text() != first
    torch.manual_seed(1)
    assert text() == first
