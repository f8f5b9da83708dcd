"""Many prompts in one call of `generate`: their order, their seeds, and bad ones among good ones."""

import pickle

import pytest
import torch
from decoders import WordTokenizer
from rows_decoders import alone, make_rows
from transformers import GenerationConfig

from radar import SamplingParams
from radar.errors import BatchError, UsageError

IDS = [[5, 3, 2, 8], [1], [4, 4, 9, 2, 7, 16], [2, 6], [11, 12, 13]]


class ChatTokenizer(WordTokenizer):
    """Words, and a template that puts the messages side by side."""

    chat_template = "words"

    def apply_chat_template(self, messages, **_options):
        return " ".join(message["content"] for message in messages)

    def __call__(self, text, add_special_tokens=True):
        return super().__call__(text)


@pytest.fixture(scope="module", params=[("radar", 1), ("radar", 3)], ids=str)
def decoder(request):
    return make_rows(*request.param, max_length=64, tokenizer=ChatTokenizer())


def words(ids):
    return " ".join(f"w{token}" for token in ids)


@pytest.mark.parametrize(
    "form",
    [
        list,
        lambda ids: torch.tensor([ids]),
        lambda ids: torch.tensor(ids).numpy(),
        words,
        lambda ids: [{"role": "user", "content": words(ids)}],
    ],
)
def test_a_list_of_prompts_gives_a_list_of_texts(decoder, form):
    found = decoder.generate([form(ids) for ids in IDS], max_new_tokens=4)
    assert [one.token_ids for one in found] == [alone(ids, max_new_tokens=4) for ids in IDS]
    assert [one.finish_reason for one in found] == ["length"] * len(IDS)
    assert [one.metrics.num_prompt_tokens for one in found] == list(map(len, IDS))


@pytest.mark.parametrize(
    "prompt", [IDS[0], tuple(IDS[0]), torch.tensor(IDS[0]), [{"role": "user", "content": "w5 w3"}]]
)
def test_numbers_and_messages_are_one_prompt(decoder, prompt):
    assert decoder.generate(prompt, max_new_tokens=3).token_ids
    assert len(decoder.generate([prompt], max_new_tokens=3)) == 1


@pytest.mark.parametrize("how", ["seed", "sampling"])
def test_every_prompt_has_a_seed_of_its_own(decoder, how):
    options = (
        {"temperature": 1.0, "seed": 7} if how == "seed" else {"sampling": SamplingParams(temperature=1.0, seed=7)}
    )
    found = [one.token_ids for one in decoder.generate([IDS[0]] * 4, max_new_tokens=8, **options)]
    assert found == [alone(IDS[0], max_new_tokens=8, temperature=1.0, seed=7 + i) for i in range(4)]
    assert len({tuple(text) for text in found}) == 4


def test_without_a_seed_the_noise_follows_torch(decoder):
    def say():
        torch.manual_seed(3)
        return [one.token_ids for one in decoder.generate(IDS, max_new_tokens=6, do_sample=True)]

    assert say() == say()


def test_bad_prompts_get_their_errors_and_the_others_their_texts(decoder):
    bad = {1: "", 3: "w99", 4: [], 6: 5, 7: [1] * 64, 8: None}
    prompts = [words(IDS[0]), bad[1], words(IDS[1]), bad[3], bad[4], torch.tensor(IDS[2]), bad[6], bad[7], bad[8]]
    with pytest.raises(BatchError) as caught:
        decoder.generate(prompts, max_new_tokens=6)
    error = caught.value
    assert set(error.errors) == set(bad)
    assert all(isinstance(one, UsageError) for one in error.errors.values())
    assert [None if one is None else one.token_ids for one in error.outputs] == [
        None if k in bad else alone(IDS[(0, None, 1, None, None, 2)[k]], max_new_tokens=6) for k in range(9)
    ]
    assert str(error).startswith("6 of 9 prompts failed, the first is prompt 1: UsageError: the prompt is empty")
    assert error.__cause__ is error.errors[1]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_criterion_that_fails_for_one_text_ends_that_one(decoder):
    def fail(ids, scores):
        if ids[0, 0] == IDS[2][0]:
            raise RuntimeError("broken")
        return False

    with pytest.raises(
        BatchError, match="1 of 5 prompts failed, the first is prompt 2: RuntimeError: broken"
    ) as caught:
        decoder.generate(IDS, max_new_tokens=6, stopping_criteria=[fail])
    texts = [one and one.token_ids for one in caught.value.outputs]
    assert texts == [None if k == 2 else alone(ids, max_new_tokens=6) for k, ids in enumerate(IDS)]


def test_what_is_wrong_for_all_is_told_as_it_is(decoder):
    with pytest.raises(UsageError, match="unknown argument 'max_new_token'"):
        decoder.generate(IDS, max_new_token=3)
    with pytest.raises(UsageError, match="cannot honour streamer= for several prompts"):
        decoder.generate(IDS, streamer=print)
    with pytest.raises(UsageError, match="one prompt has one text"):
        decoder.generate(IDS[0], generation_config=GenerationConfig(num_return_sequences=3, do_sample=True))
    with pytest.raises(UsageError, match="the prompt is empty"):
        decoder.generate([])
