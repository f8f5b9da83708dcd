"""`radar verify`: equal texts are equal, and a wrong decoder is caught at the right token with the right gap."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target

import radar
from radar import AutoregressiveDecoder, RadarDecoder
from radar.cli.main import main
from radar.tools.prompts import encode_prompt, load_prompts
from radar.tools.verify import TIE_ULPS, compare_texts, plain_logits, render

ASSETS = Path(radar.__file__).parent / "assets"


class Texts:
    """A decoder with given outputs, by the prompt's first token."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompt, *, max_new_tokens):
        return SimpleNamespace(token_ids=self.texts[prompt[0]][:max_new_tokens])


def check(expected, found, row, dtype=torch.float32):
    seen = []

    def logits(ids):
        seen.append(list(ids))
        return torch.tensor(row).to(dtype)

    result = compare_texts(Texts({7: found}), Texts({7: expected}), logits, [[7, 8]], max_new_tokens=9)
    return result, seen


def test_the_embedded_pair_is_lossless():
    decoder = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=256, fallback=False)
    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=256)
    prompts = [encode_prompt(line, decoder.tokenizer) for line in load_prompts(ASSETS / "prompts.jsonl", limit=4)]
    result = compare_texts(decoder, plain, plain_logits(decoder.model), prompts, max_new_tokens=32)
    assert result.differences == ()
    assert result.is_lossless
    assert (result.num_prompts, result.num_tokens) == (4, 128)
    assert render(result) == "4 of 4 texts are identical (128 tokens compared)"


def test_a_planted_wrong_token_is_reported_where_it_is():
    """One token of one text is replaced: position, both tokens and the gap are those of a stock forward."""
    model = tiny_target()
    prompts, position = [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 11
    plain = AutoregressiveDecoder(model, max_length=64)
    texts = {prompt[0]: hf_greedy(model, prompt, 20) for prompt in prompts}
    right = texts[4][position]
    texts[4] = [*texts[4][:position], (right + 1) % 17, *texts[4][position + 1 :]]
    result = compare_texts(Texts(texts), plain, plain_logits(model), prompts, max_new_tokens=20)
    (found,) = result.differences
    assert (found.prompt, found.position, found.expected, found.found) == (1, position, right, (right + 1) % 17)
    with torch.no_grad():
        row = model(torch.tensor([prompts[1] + texts[4][:position]])).logits[0, -1]
    assert found.gap == pytest.approx(float(row[right] - row[(right + 1) % 17]), rel=1e-5)
    assert found.gap > found.bound > 0
    assert not found.is_tie
    assert not result.is_lossless
    text = render(result)
    assert f"prompt 2, token {position}: expected {right}, got {(right + 1) % 17}; logit gap" in text
    assert "NOT a tie" in text
    assert "2 of 3 texts are identical" in text


def test_a_wrong_draft_changes_nothing_and_a_wrong_verifier_does():
    """A real decoder whose verification is broken: it takes every draft token at its word."""
    model = tiny_target()
    decoder = RadarDecoder(model, draft=tiny_draft(), max_length=64, fallback=False)
    plain = AutoregressiveDecoder(model, max_length=64)
    prompts = [[1, 2, 3], [4, 5, 6]]
    assert compare_texts(decoder, plain, plain_logits(model), prompts, max_new_tokens=24).is_lossless
    target = decoder.engine.target
    logits = target.logits
    target.logits = lambda hidden: logits(hidden).roll(1, dims=-1)
    result = compare_texts(decoder, plain, plain_logits(model), prompts, max_new_tokens=24)
    assert [item.position for item in result.differences] == [0, 0]
    assert not result.is_lossless


@pytest.mark.parametrize("dtype", list(TIE_ULPS))
def test_a_tie_is_a_few_units_in_the_last_place_of_the_largest_logit(dtype):
    unit = torch.finfo(dtype).eps * 32  # of the largest, which lies from 32 up to 64
    for units, tie in ((0, True), (1, True), (TIE_ULPS[dtype], True), (TIE_ULPS[dtype] + 1, False)):
        for sign in (1, -1):  # a plain forward may prefer either
            row = [24.0, 24.0 - sign * units * unit, -40.0]
            (found,) = check([0, 0], [0, 1], row, dtype)[0].differences
            assert found.gap == sign * units * unit
            assert found.bound == TIE_ULPS[dtype] * unit
            assert found.is_tie == tie
    assert check([0], [1], [1.0, 1.0 - 2**-20], torch.float32)[0].is_lossless
    assert not check([0], [1], [1.0, 0.9], torch.float32)[0].is_lossless


def test_the_forward_sees_the_text_before_the_difference():
    result, seen = check([3, 4, 5, 6], [3, 4, 9, 6], [0.0] * 10)
    assert seen == [[7, 8, 3, 4]]
    assert result.differences[0].position == 2


def test_a_text_that_ends_early_is_a_difference_and_no_tie():
    (found,) = check([1, 2, 3], [1, 2], [0.0] * 4)[0].differences
    assert (found.position, found.expected, found.found) == (2, 3, None)
    assert math.isnan(found.gap)
    assert not found.is_tie
    assert "got the end of the text" in render(check([1, 2, 3], [1, 2], [0.0] * 4)[0])


def test_the_command(capsys, monkeypatch):
    arguments = ["verify", "--limit", "2", "--max-new-tokens", "12", "--no-progress", "--device", "cpu"]
    assert main(arguments) == 0
    assert "2 of 2 texts are identical (24 tokens compared)" in capsys.readouterr().out
    generate = RadarDecoder.generate

    def wrong(self, prompt, **options):
        output = generate(self, prompt, **options)
        if isinstance(self, RadarDecoder):
            output.token_ids[5] = (output.token_ids[5] + 1) % 4096
        return output

    monkeypatch.setattr(RadarDecoder, "generate", wrong)
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert out.count("NOT a tie") == 2
    assert "prompt 1, token 5: expected" in out
