"""The pair that ships in the package: it loads, it is lossless on real prompts, and its policy saves draft calls."""

import json
from pathlib import Path

import pytest
import torch
from fakes import hf_greedy

import radar
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, SamplingParams, Threshold, TreeConfig
from radar.metrics import merge
from radar.tools.compare import Contender, compare, render
from radar.tools.prompts import PromptLine, encode_prompt, load_prompts
from radar.tools.twins import fingerprint, load_prompts_seen, near_twins, save_prompts_seen

ASSETS = Path(radar.__file__).parent / "assets"
LENGTH = 32


@pytest.fixture(scope="module")
def decoder():
    return RadarDecoder.from_pretrained(dtype=torch.float32, max_length=1024, fallback=False)


@pytest.fixture(scope="module")
def prompts(decoder):
    return [encode_prompt(line, decoder.tokenizer) for line in load_prompts(ASSETS / "prompts.jsonl")]


@pytest.fixture(scope="module")
def expected(decoder, prompts):
    return [hf_greedy(decoder.model, prompt, LENGTH) for prompt in prompts]


def test_the_default_is_the_trained_policy(decoder):
    assert isinstance(decoder.policy, RadarPolicy)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_twenty_prompts_equal_generate(decoder, prompts, expected, part):
    """Greedy text under the trained policy, a threshold and 1 to 16 calls."""
    assert len(prompts) == 20
    trained = decoder.policy
    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=1024)
    for index in range(part, 20, 4):
        prompt, text = prompts[index], expected[index]
        assert plain.generate(prompt, max_new_tokens=LENGTH).token_ids == text
        for policy in (trained, Threshold(0.3), FixedDepth(1 + (index * 5 + 3) % 16)):
            decoder.policy = policy
            assert decoder.generate(prompt, max_new_tokens=LENGTH).token_ids == text, (index, policy)
    decoder.policy = trained


@pytest.mark.slow
def test_other_trees_change_no_text(decoder, prompts, expected):
    for total_tokens, max_calls in ((5, 3), (60, 16), (130, 16)):
        other = RadarDecoder.from_pretrained(
            dtype=torch.float32, max_length=512, tree=TreeConfig(total_tokens=total_tokens, max_calls=max_calls)
        )
        for prompt, text in zip(prompts[::5], expected[::5], strict=True):
            assert other.generate(prompt, max_new_tokens=LENGTH).token_ids == text


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"top_p": 0.8}, {"top_k": 20}, {"repetition_penalty": 1.2}], ids=str)
def test_sampled_text_is_the_plain_decoders(decoder, prompts, chosen):
    """A few of the combinations that tests/test_lossless_sampling.py runs."""
    plain = AutoregressiveDecoder(decoder.model, max_length=512)
    for seed, (prompt, temperature) in enumerate(zip(prompts[::7], (0.3, 0.7, 1.5), strict=True)):
        sampling = SamplingParams(temperature=temperature, seed=seed, **chosen)
        expected = plain.generate(prompt, max_new_tokens=24, sampling=sampling).token_ids
        assert decoder.generate(prompt, max_new_tokens=24, sampling=sampling).token_ids == expected


@pytest.mark.slow
def test_the_policy_saves_draft_calls(decoder, prompts):
    """On prompts that it was not trained on. They are easy, so the policy goes deeper here than on others, and still
    makes fewer calls per token. The figures for the paper's tasks are in bench/results."""
    trained, runs = decoder.policy, {}
    for policy in (FixedDepth(8), trained):
        decoder.policy = policy
        runs[policy] = merge([decoder.generate(prompt, max_new_tokens=48).metrics for prompt in prompts])
    decoder.policy = trained
    eagle, mine = runs.values()
    assert mine.draft_calls_per_round < 0.97 * eagle.draft_calls_per_round
    assert mine.mean_acceptance_length > 0.988 * eagle.mean_acceptance_length
    assert mine.num_draft_calls / mine.num_tokens < 0.95 * eagle.num_draft_calls / eagle.num_tokens
    assert eagle.mean_acceptance_length > 3.0
    assert len(mine.stop_histogram) > 3  # it reads its scores


def test_streamed_chat(decoder):
    prompt = encode_prompt(PromptLine("Write a function to add two numbers.", chat=True), decoder.tokenizer)
    stream = decoder.stream(prompt, max_new_tokens=48)
    text = "".join(stream)
    assert text == stream.output.text
    assert "def " in text
    assert decoder.tokenizer.decode(prompt).startswith("<|bos|><|user|>")


@pytest.mark.slow
def test_comparison_table(decoder):
    trained = decoder.policy

    def use(policy):
        return lambda: setattr(decoder, "policy", policy)

    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=1024)
    contenders = [
        Contender("autoregressive", plain),
        Contender("EAGLE-3", decoder, use(FixedDepth(8))),
        Contender("RADAR", decoder, use(trained)),
    ]
    lines = load_prompts(ASSETS / "prompts.jsonl", limit=3)
    rows, texts = compare(contenders, lines, decoder.tokenizer, max_new_tokens=24, repeats=2)
    assert len(texts) == 6
    assert all(output == text.expected for text in texts for output in text.outputs.values())
    assert [row.metrics.num_tokens for row in rows] == [rows[0].metrics.num_tokens] * 3
    assert rows[1].metrics.draft_calls_per_round == 8
    assert all(row.slowest <= row.metrics.tokens_per_second * 1.001 <= row.fastest * 1.01 for row in rows)
    assert "8   100.0%" in render(rows)


def measuring_prompts_seen(policy):
    """Prompts of the package that a policy was trained on, or on a near-twin of; None if it does not say."""
    seen = load_prompts_seen(policy)
    measuring = {n: fingerprint(line.text) for n, line in enumerate(load_prompts(ASSETS / "prompts.jsonl"))}
    return None if seen is None else near_twins(measuring, seen)


def test_prompts_that_measure_are_found_among_what_was_trained_on(tmp_path):
    texts = [line.text for line in load_prompts(ASSETS / "prompts.jsonl")]
    save_prompts_seen(tmp_path, {7: fingerprint("Something else."), 9: fingerprint(f"{texts[4]} Please."),
                                 11: fingerprint(texts[2])})  # fmt: skip
    assert measuring_prompts_seen(tmp_path) == {4: 9, 2: 11}


def test_the_policy_was_trained_on_no_prompt_that_measures():
    if (found := measuring_prompts_seen(ASSETS / "policy")) is None:
        pytest.skip("the policy that ships is from before policies said what they were trained on")
    assert found == {}


def test_assets_are_small_and_described():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    card = (ASSETS / "README.md").read_text()
    for source in ("Python standard library", "GSM8K", "MBPP", "GPTeacher"):
        assert source in card
    assert json.loads((ASSETS / "draft" / "config.json").read_text())["draft_vocab_size"] == 2048
