"""Where texts part: the token, the gap of a stock forward, what rounding explains, and what people read of it."""

import math

import pytest
import torch
from fakes import hf_greedy, tiny_target

from radar.tools.differences import TIE_ULPS, Difference, find_differences, render_differences, summarize_differences
from radar.tools.prompts import PromptLine
from radar.tools.stock import StockModel
from radar.tools.texts import Text, decode_texts


def check(expected, found, row, dtype=torch.float32):
    """The differences of two texts after the prompt [7, 8], and the texts that scores were asked for."""
    seen = []

    def scores(ids):
        seen.append(list(ids))
        return torch.tensor(row).to(dtype)

    return find_differences([Text(0, 0, [7, 8], {"plain": expected, "ours": found})], scores, dtype), seen


def test_equal_texts_have_no_difference_and_ask_for_no_scores():
    assert check([1, 2], [1, 2], []) == ([], [])


def test_the_forward_sees_the_text_before_the_difference():
    (found,), seen = check([3, 4, 5, 6], [3, 4, 9, 6], [0.0] * 10)
    assert seen == [[7, 8, 3, 4]]
    assert (found.decoder, found.position, found.expected, found.found) == ("ours", 2, 5, 9)


@pytest.mark.parametrize("dtype", list(TIE_ULPS))
def test_a_tie_is_a_few_units_in_the_last_place_of_the_largest_logit(dtype):
    unit = torch.finfo(dtype).eps * 32  # of the largest, which lies from 32 up to 64
    for units, tie in ((0, True), (1, True), (TIE_ULPS[dtype], True), (TIE_ULPS[dtype] + 1, False)):
        for sign in (1, -1):  # a plain forward may prefer either
            row = [24.0, 24.0 - sign * units * unit, -40.0, -math.inf]
            (found,) = check([0, 0], [0, 1], row, dtype)[0]
            assert found.gap == sign * units * unit
            assert found.bound == TIE_ULPS[dtype] * unit
            assert found.is_tie == tie
    assert check([0], [1], [1.0, 1.0 - 2**-20], torch.float32)[0][0].is_tie
    assert not check([0], [1], [1.0, 0.9], torch.float32)[0][0].is_tie
    assert not check([0], [1], [1.0, -math.inf], torch.float32)[0][0].is_tie, "a token that was suppressed"


@pytest.mark.parametrize(("found", "tokens"), [([1, 2], (3, None)), ([1, 2, 3, 4], (None, 4))])
def test_a_text_that_ends_early_is_a_difference_and_no_tie(found, tokens):
    (difference,), seen = check([1, 2, 3], found, [])
    assert (difference.position, difference.expected, difference.found) == (min(3, len(found)), *tokens)
    assert math.isnan(difference.gap)
    assert difference.to_dict()["gap"] is None
    assert not difference.is_tie
    assert seen == []
    assert "the end" in render_differences([difference], None, "plain")


def test_a_repeat_that_parts_in_the_same_way_counts_once():
    text = Text(0, 0, [7], {"plain": [1, 2], "ours": [1, 3], "third": [1, 2]})
    other = Text(0, 0, [7], {"plain": [1, 2], "ours": [1, 1]})
    found = find_differences([text, text, other], lambda ids: torch.zeros(9), torch.float32)
    assert [(one.decoder, one.found) for one in found] == [("ours", 3), ("ours", 1)]


def test_a_planted_wrong_token_is_reported_where_it_is():
    """Position, both tokens and the gap are those of a stock forward, under the model's generation config."""
    model = tiny_target()
    stock = StockModel(model)
    prompts, position = [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 11
    texts = [
        Text(i, 0, p, {"generate": hf_greedy(model, p, 20), "ours": hf_greedy(model, p, 20)})
        for i, p in enumerate(prompts)
    ]
    right = texts[1].outputs["ours"][position]
    wrong = texts[1].outputs["ours"][position] = (right + 1) % 17
    (found,) = find_differences(texts, stock.scores, stock.dtype)
    assert (found.prompt, found.position, found.expected, found.found) == (1, position, right, wrong)
    with torch.no_grad():
        row = model(torch.tensor([prompts[1] + texts[1].expected[:position]], device=model.device)).logits[0, -1]
    row = row.log_softmax(-1)
    assert found.gap == pytest.approx(float(row[right] - row[wrong]), rel=1e-4)
    assert found.gap > found.bound > 0
    assert not found.is_tie
    model.generation_config.repetition_penalty = 1.5
    assert find_differences(texts, StockModel(model).scores, stock.dtype)[0].gap != pytest.approx(found.gap, rel=1e-2)


@pytest.mark.parametrize("changed", [{}, {"repetition_penalty": 1.5}, {"suppress_tokens": [3, 5]}, {"do_sample": True}])
def test_the_stock_model_is_generate_under_its_generation_config(changed):
    model = tiny_target()
    for name, value in changed.items():
        setattr(model.generation_config, name, value)
    stock, ids = StockModel(model), [1, 2, 3]
    text = stock.text(ids, max_new_tokens=12)
    assert text == hf_greedy(model, ids, 12)
    assert len(text) == 12
    for length in range(6):
        assert int(stock.scores(ids + text[:length]).argmax()) == text[length]


class Letters:
    """A tokenizer of one-letter tokens."""

    chat_template = "a template"

    def __call__(self, text):
        return {"input_ids": list(map(ord, text))}

    def apply_chat_template(self, messages, **options):
        return [ord(letter) for message in messages for letter in message["content"]]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


def test_later_turns_follow_the_first_decoders_answers():
    lines = [PromptLine("a", True, ("b", "c")), PromptLine("d", False)]
    seen, done = [], []

    def writes(letter):
        def decode(ids):
            seen.append((letter, "".join(map(chr, ids))))
            return [ord(letter)]

        return decode

    texts = list(decode_texts({"one": writes("x"), "two": writes("y")}, lines, Letters(), lambda: done.append(1)))
    assert [ids for letter, ids in seen if letter == "x"] == ["a", "axb", "axbxc", "d"]
    assert [ids for letter, ids in seen if letter == "y"] == ["a", "axb", "axbxc", "d"]
    assert [(text.prompt, text.turn) for text in texts] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert texts[1].expected == [ord("x")]
    assert len(done) == 2


def difference(gap, bound, prompt=0, turn=0):
    return Difference("RADAR", prompt, turn, 16, ord("a"), ord("b"), gap, bound)


def test_what_people_read():
    tie, wrong = difference(0.03, 0.25, prompt=2), difference(1.5, 0.25, turn=1)
    text = render_differences([tie, wrong], Letters(), "generate").splitlines()
    assert " ".join(text[0].split()) == (
        "prompt decoder position [token] generate writes it writes gap [nats] rounding [nats] verdict"
    )
    assert " ".join(text[2].split()) == "1, turn 2 RADAR 17 'a' (97) 'b' (98) 1.5 0.25 NOT a tie"
    assert " ".join(text[3].split()) == "3, turn 1 RADAR 17 'a' (97) 'b' (98) 0.03 0.25 a tie"
    assert "and 5 more" in render_differences([tie] * 25, None, "generate")
    assert summarize_differences([], 6, torch.float32) == "all 6 texts are the same, token for token"
    assert summarize_differences([tie], 6, torch.bfloat16).startswith("1 of 6 texts part, each at a tie: ")
    assert "bfloat16's precision" in summarize_differences([tie], 6, torch.bfloat16)
    assert summarize_differences([tie, wrong], 6, torch.float32) == (
        "2 of 6 texts part, 1 of them where rounding in float32 does not explain it"
    )
