"""One seed, one text: sampled decoding equals plain sampling, whatever drafts, stops or verifies."""

import itertools
from collections import Counter

import pytest
import torch
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.engine.sampler import Sampler

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
SETTINGS = [
    SamplingParams(temperature=t, seed=seed, **extra)
    for seed, (t, extra) in enumerate(
        itertools.product(
            (0.3, 1.0),
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
    plain = AutoregressiveDecoder(model, max_length=200)
    tree = TreeConfig(total_tokens=total_tokens, max_calls=5)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=policy, tree=tree, max_length=200, fallback=False)
    texts = set()
    for sampling, prompt in zip(SETTINGS, itertools.cycle(PROMPTS)):
        expected = plain.generate(prompt, max_new_tokens=16, sampling=sampling).token_ids
        assert ours.generate(prompt, max_new_tokens=16, sampling=sampling).token_ids == expected, sampling
        texts.add(tuple(expected))
    assert len(texts) > 10  # of 12: seeds and settings matter


def test_another_noise_position_would_be_seen(monkeypatch):
    """The comparison has teeth: noise keyed one position off gives another text."""
    model = tiny_target()
    plain = AutoregressiveDecoder(model, max_length=200)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(3), max_length=200, fallback=False)
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
    ours = RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=200)

    def text(seed):
        out = ours.generate(PROMPTS[0], max_new_tokens=40, sampling=SamplingParams(temperature=1.5, seed=seed))
        return out.token_ids

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(None) != text(None)


SEEDS = 20_000
PROMPT = PROMPTS[1]
TEMPERATURE = 1.2


def sampled_texts(model, *, same_noise=False):
    """Three tokens behind PROMPT for SEEDS seeds at once, each sampled as decoders sample; and the exact conditionals.

    Returns:
        tokens [SEEDS, 3], and for each position {the tokens before it: probabilities [V]}.
    """
    sampler = Sampler(SEEDS, VOCAB, torch.device("cpu"))
    sampler.set(SamplingParams(temperature=TEMPERATURE, seed=0))
    sampler.state.seed.copy_(torch.arange(SEEDS))
    tokens, exact = torch.zeros(SEEDS, 0, dtype=torch.int64), []
    for position in range(3):
        index = torch.full((SEEDS, 1), len(PROMPT) + (0 if same_noise else position))
        if position:
            prefixes, which = tokens.unique(dim=0, return_inverse=True)
        else:
            prefixes, which = tokens[:1], torch.zeros(SEEDS, dtype=torch.int64)
        with torch.inference_mode():
            ids = torch.cat((torch.tensor([PROMPT] * len(prefixes)), prefixes), 1).to(model.device)
            logits = model(ids).logits[:, -1].float().cpu()
        exact.append({tuple(p.tolist()): row for p, row in zip(prefixes, logits.double() / TEMPERATURE, strict=True)})
        tokens = torch.cat((tokens, sampler.sample(logits[which][:, None], index)), 1)
    return tokens, [{prefix: row.softmax(-1) for prefix, row in level.items()} for level in exact]


def excess(tokens, exact):
    """Chi-square of the texts' joint frequencies against their exact probabilities, in standard deviations above its
    mean; cells of fewer than five expected texts are one."""
    joint = {(): 1.0}
    for level in exact[: tokens.shape[1]]:
        joint = {(*p, t): joint[p] * float(level[p][t]) for p in level for t in range(VOCAB)}
    found = Counter(map(tuple, tokens.tolist()))
    cells = [(found[text], SEEDS * probability) for text, probability in joint.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    large.append((SEEDS - sum(seen for seen, _ in large), SEEDS - sum(wanted for _, wanted in large)))
    statistic = sum((seen - wanted) ** 2 / max(wanted, 1e-9) for seen, wanted in large)
    freedom = len(large) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_the_first_three_positions_follow_the_targets_distribution():
    """Independent of the shared noise: 20,000 seeds against softmax."""
    tokens, exact = sampled_texts(tiny_target())
    for length in (1, 2, 3):
        assert excess(tokens[:, :length], exact) < 5


def test_planted_errors_are_seen():
    model = tiny_target()
    tokens, exact = sampled_texts(model, same_noise=True)  # the second token follows from the first one's noise
    assert excess(tokens[:, :1], exact) < 5
    assert excess(tokens[:, :2], exact) > 100
    tokens, exact = sampled_texts(model)
    colder = [{p: (row.log() * 1.05).softmax(-1) for p, row in level.items()} for level in exact]
    assert excess(tokens[:, :1], colder) > 5


def test_decoders_give_these_texts():
    model = tiny_target()
    tokens, _ = sampled_texts(model)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(2), max_length=64)
    for seed in range(0, SEEDS, SEEDS // 20):
        out = ours.generate(PROMPT, max_new_tokens=3, sampling=SamplingParams(temperature=TEMPERATURE, seed=seed))
        assert out.token_ids == tokens[seed].tolist()
