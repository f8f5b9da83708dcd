"""Texts that share rounds: what one raises ends it alone, what the engine raises ends them all, and it goes on."""

import pytest
import torch
from fakes import VOCAB
from rows_decoders import PROMPTS, Gate, alone, make_rows, tokens_of

from radar import AutoregressiveDecoder
from radar.errors import BusyError, NumericalError, UsageError


@pytest.fixture(params=["radar", "plain"])
def decoder(request):
    return make_rows(request.param, 4)


@pytest.fixture
def two():
    return make_rows("plain", 2)


@pytest.mark.parametrize(
    ("where", "at", "error"),
    [
        ("logits_processor", 1, RuntimeError), ("logits_processor", 4, KeyboardInterrupt),
        ("stopping_criteria", 1, KeyboardInterrupt), ("stopping_criteria", 4, RuntimeError),
    ],
)  # fmt: skip
def test_what_a_text_raises_ends_it_alone(decoder, where, at, error):
    left = [at]

    def fail(ids, scores):
        left[0] -= 1
        if left[0] == 0:
            raise error("broken")
        return scores if where == "logits_processor" else False

    options = {"max_new_tokens": 10}
    good = [decoder.rounds(prompt, **options) for prompt in PROMPTS[1:4]]
    bad = decoder.rounds(PROMPTS[0], **options, **{where: [fail]})
    with pytest.raises(error, match="broken"):
        list(bad)
    assert list(bad) == []
    assert bad.finish_reason == "error"
    if where == "stopping_criteria":  # the token that it was asked about is there
        assert len(bad.token_ids) == at
    assert bad.token_ids == alone(PROMPTS[0], **options)[: len(bad.token_ids)]
    for prompt, one in zip(PROMPTS[1:4], good, strict=True):
        assert tokens_of(one) == alone(prompt, **options)


def test_scores_that_are_no_numbers_end_their_text_alone(decoder):
    model, poison = decoder.model, 11

    def poisoned(module, args, out):
        return torch.where((args[0] == poison)[..., None], torch.nan, out)

    handle = model.model.embed_tokens.register_forward_hook(poisoned)
    clean, gate = [token for token in range(VOCAB) if token != poison], Gate()
    held = decoder.rounds([1], max_new_tokens=2, suppress_tokens=[poison], stopping_criteria=[gate])
    assert gate.reached.wait(20)
    bad = decoder.rounds([3, poison, 4], max_new_tokens=4)  # both join in one step
    ok = decoder.rounds([1, 2, 3], max_new_tokens=4, suppress_tokens=[poison])
    gate.opened.set()
    assert len(tokens_of(held)) == 2
    with pytest.raises(NumericalError):
        list(bad)
    found = tokens_of(ok)
    handle.remove()
    assert found == alone([1, 2, 3], max_new_tokens=4, suppress_tokens=[poison])
    assert set(found) <= set(clean)


def test_a_failure_of_the_engine_ends_all_texts_and_the_next_gets_a_new_one(decoder):
    gate, engine, left = Gate(), decoder.engine, [3]
    texts = [decoder.rounds(prompt, max_new_tokens=20, stopping_criteria=[gate]) for prompt in PROMPTS[:6]]
    assert gate.reached.wait(60)

    def fail(made=engine.round):
        left[0] -= 1
        if not left[0]:  # some have a row by then, others wait
            raise MemoryError("out of it")
        return made()

    engine.round = fail
    gate.opened.set()
    for one in texts:
        with pytest.raises(MemoryError, match="out of it"):
            list(one)
        assert one.finish_reason == "error"
        assert list(one) == []
    assert decoder.generate(PROMPTS[0], max_new_tokens=5).token_ids == alone(PROMPTS[0], max_new_tokens=5)
    assert decoder.engine is not engine


def test_an_engine_that_cannot_be_made_is_told_to_who_asks(two):
    expected, recipe = two.generate(PROMPTS[0], max_new_tokens=5).token_ids, two._kept.recipe

    class Broken:
        turns = recipe.turns

        def build(self, model):
            raise UsageError("does not fit")

    two._kept.recipe = Broken()
    two.model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, out: None)  # so it is to be made again
    with pytest.raises(UsageError, match="does not fit"):
        two.generate(PROMPTS[0], max_new_tokens=5)
    two._kept.recipe = recipe
    assert two.generate(PROMPTS[0], max_new_tokens=5).token_ids == expected


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("what", ["generate", "read", "astream"])
def test_a_processor_that_asks_for_another_text_is_told_so(two, where, what):
    other = two.rounds(PROMPTS[1], max_new_tokens=30)

    def ask(ids, scores):
        if what == "generate":
            two.generate([1, 2], max_new_tokens=2)
        elif what == "read":
            next(other)
        else:
            two.astream([1, 2], max_new_tokens=2)
        return scores if where == "logits_processor" else False

    with pytest.raises(BusyError, match="in the middle of a round"):
        two.generate(PROMPTS[0], max_new_tokens=20, **{where: [ask]})
    assert len(tokens_of(other)) == 30


def test_a_hook_that_asks_for_a_text_of_the_same_model_is_told_so(two):
    baseline = AutoregressiveDecoder(two.model, max_length=150)

    def ask(_module, _args, _out):
        two.generate([1, 2], max_new_tokens=2)

    handle = two.model.model.layers[1].register_forward_hook(ask)
    for decoder in (baseline, two):
        with pytest.raises(BusyError):
            decoder.generate(PROMPTS[0], max_new_tokens=3)
    handle.remove()
    assert (
        two.generate(PROMPTS[0], max_new_tokens=3).token_ids
        == baseline.generate(PROMPTS[0], max_new_tokens=3).token_ids
    )
