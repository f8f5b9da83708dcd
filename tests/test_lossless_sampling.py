"""One seed, one text: sampled decoding equals plain sampling, whatever drafts, stops or verifies."""

import itertools

import pytest
import torch
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
SETTINGS = [
    SamplingParams(temperature=t, seed=seed, **extra)
    for seed, (t, extra) in enumerate(
        itertools.product(
            (0.3, 0.7, 1.0, 1.5),
            ({}, {"top_p": 0.8}, {"top_k": 5}, {"repetition_penalty": 1.3}, {"top_p": 0.9, "min_p": 0.05, "top_k": 9}),
        )
    )
]
SETTINGS += [SamplingParams(repetition_penalty=1.4), SamplingParams(logit_bias={3: 2.0, 7: -float("inf")})]


@pytest.mark.parametrize(
    ("policy", "total_tokens"), [(FixedDepth(1), 12), (FixedDepth(5), 40), (Threshold(0.5), 25)], ids=repr
)
def test_every_setting_gives_the_plain_decoders_text(policy, total_tokens):
    model = tiny_target()
    plain = AutoregressiveDecoder(model, max_length=200, compile=False)
    tree = TreeConfig(total_tokens=total_tokens, max_calls=5)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=policy, tree=tree, max_length=200, compile=False)
    texts = set()
    for sampling, prompt in itertools.product(SETTINGS, PROMPTS):
        expected = plain.generate(prompt, max_new_tokens=24, sampling=sampling).token_ids
        assert ours.generate(prompt, max_new_tokens=24, sampling=sampling).token_ids == expected, sampling
        texts.add(tuple(expected))
    assert len(texts) > 55  # of 66: seeds and settings matter


def test_another_noise_position_would_be_seen(monkeypatch):
    """The comparison has teeth: noise keyed one position off gives another text."""
    model = tiny_target()
    plain = AutoregressiveDecoder(model, max_length=200, compile=False)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(3), max_length=200, compile=False)
    sampling = SamplingParams(temperature=1.0, seed=5)
    expected = plain.generate(PROMPTS[0], max_new_tokens=24, sampling=sampling).token_ids
    assert ours.generate(PROMPTS[0], max_new_tokens=24, sampling=sampling).token_ids == expected
    sampler = ours.engine.steps.sampler
    if ours.engine_name == "eager":
        right = sampler.sample
        monkeypatch.setattr(
            sampler, "sample", lambda logits, positions, *tree: right(logits, positions + bool(tree), *tree)
        )
        assert ours.generate(PROMPTS[0], max_new_tokens=24, sampling=sampling).token_ids != expected


def test_a_seed_repeats_and_no_seed_does_not():
    ours = RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=200, compile=False)

    def text(seed):
        out = ours.generate(PROMPTS[0], max_new_tokens=40, sampling=SamplingParams(temperature=1.5, seed=seed))
        return out.token_ids

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(None) != text(None)


def test_first_positions_follow_the_targets_distribution():
    """Chi-square over seeds, independent of the shared noise: frequencies of the first token against softmax."""
    model = tiny_target()
    ours = RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(2), max_length=64, compile=False)
    prompt, seeds, temperature = PROMPTS[1], 1500, 1.2
    counts = torch.zeros(VOCAB)
    second = torch.zeros(VOCAB, VOCAB)
    for seed in range(seeds):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        first, then = ours.generate(prompt, max_new_tokens=2, sampling=sampling).token_ids
        counts[first] += 1
        second[first, then] += 1
    with torch.inference_mode():

        def exact(ids):
            ids = torch.tensor([ids], device=model.device)
            return (model(ids).logits[0, -1].double() / temperature).softmax(-1).cpu()

        assert chi_square(counts, exact(prompt)) < LIMIT
        assert chi_square(counts, exact([*prompt, 1])) > LIMIT  # another context is told apart
        common = int(counts.argmax())
        assert chi_square(second[common], exact([*prompt, common])) < LIMIT


LIMIT = 60.0  # the 99.999th percentile of chi-square with at most 16 degrees of freedom is 54


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    small = expected < 5
    seen = torch.cat((counts[~small], counts[small].sum()[None]))
    wanted = torch.cat((expected[~small], expected[small].sum()[None])).clamp(min=1e-9)
    return float(((seen - wanted) ** 2 / wanted).sum())
