"""Scores that are not numbers, at the sampler: the shortcut of greedy decoding and sampling follow one rule."""

from functools import partial

import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_draft, tiny_target
from transformers import LogitsProcessorList

from radar import AutoregressiveDecoder, RadarDecoder
from radar.config import SamplingParams
from radar.engine.sampler import Sampler
from radar.errors import NumericalError
from radar_kernels.sample_tokens import NO_TOKEN

INF = float("inf")


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "seed": 1}, {"repetition_penalty": 1.2}])
def test_rows_without_a_token_are_told_from_rows_with_one(params):
    sampler = Sampler(1, 40, DEVICE)
    sampler.set(SamplingParams(**params))
    sampler.start(torch.tensor([[1, 2]], device=DEVICE))
    logits = torch.randn(1, 5, 40, device=DEVICE)
    logits[0, 0, 39], logits[0, 1, 0], logits[0, 2], logits[0, 3, 1:] = float("nan"), INF, -INF, -INF
    tokens = sampler.sample(logits, torch.arange(5, device=DEVICE)[None])
    forced = NO_TOKEN if params.get("temperature") else 0
    assert tokens[0, :4].tolist() == [NO_TOKEN, forced, NO_TOKEN, 0]
    assert tokens[0, 4] >= 0
    tokens[0, 1] = NO_TOKEN
    before = sampler.state.seen.clone()
    sampler.commit(tokens[:, :3], torch.tensor([3], device=DEVICE))
    assert torch.equal(sampler.state.seen, before)


def spoiled(token):
    """A model for whose texts the scores hold NaN once `token` has been written."""
    model = tiny_target()
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return model


@pytest.mark.parametrize("sampling", [None, SamplingParams(temperature=1.0, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plain", [False, True], ids=["drafts", "plain"])
def test_a_text_that_meets_such_scores_is_an_error_and_the_next_one_is_not(plain, sampling):
    text = hf_greedy(tiny_target(), [1, 2, 3], 20)
    token = next(token for token in text[4:] if token not in (1, 2, 3, *text[:2]))
    model = spoiled(token)
    make = AutoregressiveDecoder if plain else partial(RadarDecoder, draft=tiny_draft(), fallback=False)
    decoder = make(model, max_length=128)
    with pytest.raises(NumericalError, match="NaN or no finite number"):
        decoder.generate([1, 2, token], max_new_tokens=20, sampling=sampling)
    if sampling is None:
        with pytest.raises(NumericalError):
            decoder.generate([1, 2, 3], max_new_tokens=20)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = tiny_target().get_input_embeddings().weight[token]
    found = decoder.generate([1, 2, 3], max_new_tokens=20)
    assert found.token_ids == text


@pytest.mark.parametrize("token", [0, 4, 7, 10])
def test_a_draft_of_a_token_without_numbers_spoils_no_other(token):
    """Plain decoding never reads the token; a tree may hold it beside the text, and 0 is what padding holds."""
    expected = hf_greedy(tiny_target(), [1, 2, 3], 20)
    assert token not in (1, 2, 3, *expected)
    decoder = RadarDecoder(spoiled(token), draft=tiny_draft(), fallback=False, max_length=128)
    found = decoder.generate([1, 2, 3], max_new_tokens=20, sampling=SamplingParams())
    assert found.token_ids == expected


def both(**options):
    model = tiny_target()
    ours = RadarDecoder(model, draft=tiny_draft(), fallback=False, max_length=128)
    return [ours, AutoregressiveDecoder(model, max_length=128)]


def test_a_processor_may_force_a_token_by_an_infinite_score():
    """As in transformers, where such a score is the highest; softmax makes NaN of it, so sampling is an error there."""

    def force(ids, scores):
        scores = scores.clone()
        scores[0, (3 * ids.shape[1]) % 17] = INF
        scores[0, 16] = INF if ids.shape[1] % 4 == 0 else 0.0
        return scores

    for decoder in both():
        ids = torch.tensor([[1, 2, 3]], device=DEVICE)
        options = {"logits_processor": LogitsProcessorList([force]), "max_new_tokens": 20, "do_sample": False}
        expected = decoder.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        assert torch.equal(decoder.generate_ids(ids, **options), expected)
        with pytest.raises(NumericalError, match="the logits processors leave no token a finite score"):
            decoder.generate([1, 2, 3], logits_processor=[force], temperature=1.0)
        assert decoder.generate([1, 2, 3], max_new_tokens=20).token_ids == hf_greedy(decoder.model, [1, 2, 3], 20)


def test_broken_weights_are_not_blamed_on_processors():
    """+inf is the best score where nothing is sampled, as in transformers: half precision has it from 65,520 on."""
    same = [lambda ids, scores: scores]
    for bad in (INF, float("nan")):
        for decoder in both():
            decoder.model.lm_head.register_forward_hook(
                # on the device alone: the forward is captured
                lambda _module, _args, out, bad=bad: out.masked_fill(torch.arange(17, device=out.device) == 5, bad)
            )
            ids = torch.tensor([[1, 2, 3]], device=DEVICE)
            result = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4}
            greedy = (
                (decoder.generate_ids, result),
                (decoder.generate, {}),
                (decoder.generate, {"logits_processor": same}),
            )
            sampled = {"do_sample": True}, {"logits_processor": same, "do_sample": True}
            for generate, options in (*greedy, *((decoder.generate, options) for options in sampled)):
                if bad == INF and not options.get("do_sample"):
                    found = generate(ids, **options | {"max_new_tokens": 4})
                    assert (found.sequences[0, 3:].tolist() if options is result else found.token_ids) == [5] * 4
                    continue
                with pytest.raises(NumericalError, match="the target's scores hold NaN"):
                    generate(ids, **options)


def test_a_text_that_has_ended_needs_no_token_behind_it():
    """The round may hold scores behind the end: a draft guesses the end, and its successor is no number."""
    text = hf_greedy(tiny_target(), [1, 2, 3], 20)
    at = next(i for i in range(6, 20) if text[i] not in (1, 2, 3, *text[:i]))

    def spoil(_module, _args, options, out):
        ids = options["input_ids"][:, -out.logits.shape[1] :]
        out.logits = out.logits.masked_fill((ids == text[at])[..., None], float("nan"))
        return out

    for decoder in both():
        decoder.model.register_forward_hook(spoil, with_kwargs=True)
        prompt, room = [1, 2, 3], at + 1
        assert decoder.generate(prompt, max_new_tokens=room).token_ids == text[:room]
        assert decoder.generate(prompt, max_new_tokens=30, eos_token_id=text[at]).token_ids == text[:room]
        broken = decoder.rounds(prompt, max_new_tokens=30)
        with pytest.raises(NumericalError, match=f"behind token {3 + room} "):
            list(broken)
        assert broken.token_ids == text[:room]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}], ids=["greedy", "sampled"])
def test_who_forbids_every_token_is_told_apart_from_broken_weights(options):
    def nothing(ids, scores):
        return torch.full_like(scores, -INF)

    for decoder in both():
        with pytest.raises(NumericalError, match=r"behind token 3 .* the logits processors leave no token"):
            decoder.generate([1, 2, 3], logits_processor=[nothing], **options)
        with pytest.raises(NumericalError, match="or logit_bias or suppress_tokens forbid every token"):
            decoder.generate([1, 2, 3], suppress_tokens=list(range(17)), **options)
        broken = decoder.rounds([1, 2, 3], logits_processor=[nothing], max_new_tokens=9, stop_strings=None, **options)
        with pytest.raises(NumericalError):
            next(broken)
        assert broken.finish_reason == "error"
        assert broken.output(None, "eager").token_ids == []


def test_a_forward_takes_what_is_no_token():
    """A row that has none may go on beside others until the host sees it: that must not end a device's process."""
    decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=64)
    steps = decoder.engine.steps
    with torch.inference_mode():
        steps.load(torch.full((1, 1), NO_TOKEN, device=DEVICE), torch.zeros_like(steps.taps[:, :1]))
        steps.begin()
        steps.finish()
        steps.plain()
