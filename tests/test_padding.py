"""Several rows of ids, padded on the left: `generate_ids` and `custom_generate` say what transformers' batch says."""

import pytest
import torch
from fakes import DEVICE, VOCAB, tiny_draft, tiny_target
from transformers import MaxLengthCriteria, StoppingCriteriaList

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarGenerateOutput, TreeConfig, radar_generate
from radar.errors import UsageError

LENGTHS = [12, 5, 1, 9, 7]
IDS = torch.randint(1, VOCAB, (5, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0] * (12 - length) + [1] * length for length in LENGTHS])
IDS, MASK = (IDS * MASK).to(DEVICE), MASK.to(DEVICE)
OPTIONS = {
    "draft": tiny_draft(), "policy": FixedDepth(3), "tree": TreeConfig(total_tokens=16, max_calls=3, tree_top_k=4),
    "max_length": 100,
}  # fmt: skip
GREEDY = {
    "no end": {"max_new_tokens": 12},
    "ends": {"max_new_tokens": 25, "eos_token_id": [9, 4], "pad_token_id": 0},
    "an end as padding": {"max_new_tokens": 25, "eos_token_id": 9},
    "whole lengths": {"max_length": 30, "min_length": 20, "eos_token_id": [4, 9], "pad_token_id": 3},
    "on the host": {"max_new_tokens": 15, "no_repeat_ngram_size": 2},
    "allowed by row": {"max_new_tokens": 6, "prefix_allowed_tokens_fn": lambda row, ids: [7 + row, 3]},
    "a criterion of length": {"max_new_tokens": 15, "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(18)])},
}


@pytest.fixture(scope="module")
def model():
    return tiny_target()


@pytest.fixture(scope="module")
def decoders(model):
    rows = [RadarDecoder(model, **OPTIONS, max_batch_size=rows) for rows in (1, 3)]
    return [*rows, AutoregressiveDecoder(model, max_length=100, max_batch_size=4)]


@pytest.mark.parametrize("name", GREEDY)
def test_rows_are_those_of_transformers(name, model, decoders):
    expected = model.generate(IDS, attention_mask=MASK, do_sample=False, **GREEDY[name])
    for decoder in decoders:
        found = decoder.generate_ids(IDS, attention_mask=MASK, do_sample=False, **GREEDY[name])
        assert found.tolist() == expected.tolist()
        assert (found.dtype, found.device) == (expected.dtype, expected.device)


@pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 1), slice(2, 3)])
def test_padding_is_found_as_transformers_finds_it(model, decoders, rows):
    """By the pad token, unless that ends texts."""
    for options in ({}, {"eos_token_id": 0}, {"eos_token_id": [7, 9]}):
        options |= {"pad_token_id": 0, "max_new_tokens": 8, "do_sample": False}
        expected = model.generate(IDS[rows], **options)
        assert decoders[1].generate_ids(IDS[rows], **options).tolist() == expected.tolist()
    masked = {"attention_mask": MASK[rows], "max_new_tokens": 8, "do_sample": False}
    assert decoders[0].generate_ids(IDS[rows], **masked).tolist() == model.generate(IDS[rows], **masked).tolist()


def test_several_rows_of_each_are_sampled_with_seeds_of_their_own(decoders):
    options = {"do_sample": True, "max_new_tokens": 4}
    for decoder in decoders:
        found = decoder.generate_ids(IDS[:2], attention_mask=MASK[:2], num_return_sequences=3, seed=5, **options)
        alone = [decoder.generate(IDS[k // 3][MASK[k // 3] == 1], seed=5 + k, **options).token_ids for k in range(6)]
        assert found[:, 12:].tolist() == alone
        assert found[:, :12].tolist() == IDS[:2].repeat_interleave(3, dim=0).tolist()
    torch.manual_seed(1)
    first = decoders[0].generate_ids(IDS[:1], num_return_sequences=3, **options)
    torch.manual_seed(1)
    assert first.tolist() == decoders[1].generate_ids(IDS[:1], num_return_sequences=3, **options).tolist()
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_criteria_and_processors_get_each_row_alone(decoders):
    for decoder in decoders:
        seen, criteria = set(), []

        def note(ids, scores, seen=seen):
            seen.add(tuple(ids.shape))
            return scores

        def end(ids, scores, criteria=criteria):
            criteria.append(tuple(ids.shape))
            return ids.shape[1] == 14

        found = decoder.generate_ids(
            IDS, attention_mask=MASK, logits_processor=[note], stopping_criteria=[end], max_new_tokens=3, pad_token_id=0
        )
        assert seen == {(1, length + k) for length in LENGTHS for k in range(3) if length + k < 14}
        assert {shape[0] for shape in criteria} == {1}
        assert found.shape == (5, 15)
        assert found[0, -1] == 0  # its criterion ended it one token before the others
        with pytest.raises(UsageError, match="rows that may end apart are filled up: pass pad_token_id="):
            decoder.generate_ids(IDS, attention_mask=MASK, stopping_criteria=[end], max_new_tokens=3)


def test_a_failing_row_is_the_calls_error(decoders):
    def fail(ids, scores):
        if ids.shape[1] == 9:
            raise RuntimeError("broken")
        return False

    for decoder in decoders:
        with pytest.raises(RuntimeError, match="broken"):
            decoder.generate_ids(IDS, attention_mask=MASK, stopping_criteria=[fail], max_new_tokens=3, pad_token_id=0)
        assert decoder.generate_ids(IDS, attention_mask=MASK, max_new_tokens=3).shape == (5, 15)


def test_a_result_with_metrics(decoders):
    for decoder in decoders:
        found = decoder.generate_ids(IDS, attention_mask=MASK, return_dict_in_generate=True, max_new_tokens=3)
        assert isinstance(found, RadarGenerateOutput)
        assert found.sequences.shape == (5, 15)
        assert (found.metrics.num_tokens, found.metrics.num_generations) == (15, 5)
        assert found.metrics.num_prompt_tokens == sum(LENGTHS)


@pytest.fixture(scope="module")
def ours():
    return radar_generate(**OPTIONS, max_batch_size=4)


@pytest.mark.parametrize("name", ["ends", "whole lengths"])
def test_custom_generate_takes_rows(name, model, ours):
    options = dict(GREEDY[name]) | {"do_sample": False}
    options.pop("min_length", None)  # of the host's processors, made for ids with padding
    expected = model.generate(IDS, attention_mask=MASK, **options)
    assert model.generate(IDS, attention_mask=MASK, custom_generate=ours, **options).tolist() == expected.tolist()


def test_custom_generate_samples_rows(model, ours):
    many = model.generate(
        IDS[:2], attention_mask=MASK[:2], custom_generate=ours, do_sample=True, num_return_sequences=2, seed=3,
        max_new_tokens=4,
    )  # fmt: skip
    alone = [ours.decoder.generate(IDS[k // 2][MASK[k // 2] == 1], do_sample=True, seed=3 + k, max_new_tokens=4)
             for k in range(4)]  # fmt: skip
    assert many[:, 12:].tolist() == [one.token_ids for one in alone]
    with pytest.raises(UsageError, match="processors on the host for several rows or padding"):
        model.generate(IDS, attention_mask=MASK, custom_generate=ours, no_repeat_ngram_size=2, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": MASK.flip(1)}, "attention_mask with zeros behind a one: pad on the left"),
        ({"attention_mask": torch.ones_like(MASK).index_fill(1, torch.tensor([4]).to(DEVICE), 0)}, "behind a one"),
        ({"pad_token_id": int(IDS[0, 3])}, "behind a one"),
        ({"attention_mask": MASK * (MASK.sum(1, keepdim=True) > 5)}, "row 1 of the ids is nothing but padding"),
        ({"attention_mask": MASK[:, 1:]}, r"attention_mask must be of the ids' shape \[5, 12\], got \[5, 11\]"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True for 5 rows"),
        ({"return_dict_in_generate": True, "output_logits": True}, "output_logits=True for 5 rows"),
        ({"num_return_sequences": 2}, "Greedy methods"),
        ({"streamer": type("Silent", (), {"put": print, "end": lambda _: None})()}, "streamer= for 5 rows"),
        ({"inputs": IDS[:0]}, "prompt"),
        ({"inputs": IDS[None]}, r"prompt ids must be integers of shape"),
        ({"inputs": IDS + VOCAB}, "prompt ids must be integers from 0 to 16"),
    ],
)
def test_bad_rows_are_refused(decoders, options, message):
    options = {"inputs": IDS, "max_new_tokens": 3} | options
    for decoder in decoders:
        with pytest.raises(UsageError, match=message):
            decoder.generate_ids(**options)


@pytest.mark.parametrize(("configured", "asked"), [(200, {}), (10, {"max_new_tokens": 4})], ids=["too long", "unused"])
def test_the_configs_own_length_is_nobodys_demand(configured, asked):
    """It counts the padding too, and is cut to the cache, which holds 100."""
    model = tiny_target()
    model.generation_config.max_length = configured
    found = AutoregressiveDecoder(model, max_length=100).generate_ids(IDS, attention_mask=MASK, pad_token_id=0, **asked)
    new = 4 if asked else 88
    assert found.shape[1] == 12 + (4 if asked else 99)
    expected = model.generate(IDS[:1], attention_mask=MASK[:1], max_new_tokens=new, do_sample=False)
    assert torch.equal(found[0, : 12 + new], expected[0])
