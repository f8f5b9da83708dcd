"""Several rows, and a model or a policy that changes: what the texts under way and the next ones meet."""

import threading
import time

import pytest
import torch
from fakes import DEVICE, VOCAB
from rows_decoders import PROMPTS, Gate, Late, alone, make_rows, tokens_of

from radar import FixedDepth, Threshold
from radar.errors import UsageError
from radar.generation import engine_thread
from radar_kernels.reference_canonical import PAGE


@pytest.fixture(params=["radar", "plain"])
def decoder(request):
    return make_rows(request.param, 4)


@pytest.fixture
def two():
    return make_rows("plain", 2)


def test_a_changed_model_is_met_by_the_next_text(decoder):
    model = decoder.model
    decoder.generate(PROMPTS[0], max_new_tokens=5)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert (
        decoder.generate(PROMPTS[0], max_new_tokens=9).token_ids
        == make_rows("plain", 1, model).generate(PROMPTS[0], max_new_tokens=9).token_ids
    )
    engine = decoder.engine
    model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, out: out * 0.5)
    found = decoder.generate(PROMPTS[1], max_new_tokens=9).token_ids
    assert found == make_rows("plain", 1, model).generate(PROMPTS[1], max_new_tokens=9).token_ids
    assert decoder.engine is not engine


def test_a_text_waits_until_those_under_way_have_ended_if_the_model_has_changed(two):
    """Two rows, and the second stays empty."""
    gate, engine, seen = Gate(), two.engine, []
    engine.round, plain = lambda: seen.append(len(made := plain())) or made, engine.round
    first = two.rounds(PROMPTS[0], max_new_tokens=10, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    two.model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, out: out * 0.5)
    second = two.rounds(PROMPTS[1], max_new_tokens=10)
    gate.opened.set()
    assert len(tokens_of(first)) == 10
    expected = make_rows("plain", 1, two.model).generate(PROMPTS[1], max_new_tokens=10).token_ids
    assert tokens_of(second) == expected
    assert max(seen) == 1
    assert two.engine is not engine


def test_another_policy_decides_from_the_next_text_on():
    decoder, gate = make_rows("radar", 3), Gate()
    first = decoder.rounds(PROMPTS[0], max_new_tokens=12, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    setter = threading.Thread(target=setattr, args=(decoder, "policy", FixedDepth(1)))
    setter.start()  # waits for the round
    gate.opened.set()
    setter.join(60)
    second = decoder.rounds(PROMPTS[1], max_new_tokens=12)
    for one, calls in ((first, 3), (second, 1)):
        assert {item.num_draft_calls for item in one if not item.is_prefill} == {calls}
    assert (first.token_ids, second.token_ids) == tuple(alone(prompt, max_new_tokens=12) for prompt in PROMPTS[:2])
    with pytest.raises(UsageError):
        decoder.policy = 5
    decoder.policy = Threshold(0.5)
    assert decoder.generate(PROMPTS[2], max_new_tokens=6).token_ids == alone(PROMPTS[2], max_new_tokens=6)


def scaled(decoder):
    with torch.no_grad():
        decoder.model.model.layers[2].mlp.down_proj.weight.mul_(-3)


def hooked(decoder):
    decoder.model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, out: out * -3)


@pytest.mark.parametrize("change", [scaled, hooked])
@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_a_prompt_that_waits_for_a_row_is_the_changed_models(kind, change):
    """It was taken in before, and nobody has seen anything of it."""
    decoder, gate = make_rows(kind, 2), Late()
    first = decoder.rounds(PROMPTS[0], max_new_tokens=20, stopping_criteria=[gate])
    second = decoder.rounds(PROMPTS[1], max_new_tokens=40)
    third = decoder.rounds(PROMPTS[2], max_new_tokens=10)
    gate.asked.set()
    assert gate.reached.wait(60)
    assert decoder.engine._at_door
    change(decoder)
    gate.opened.set()
    assert [len(tokens_of(text)) for text in (first, second)] == [20, 40]
    assert tokens_of(third) == make_rows("plain", 1, decoder.model).generate(PROMPTS[2], max_new_tokens=10).token_ids


def test_a_prompt_that_waits_for_a_row_is_the_next_policys(monkeypatch):
    arrived = engine_thread._arrived  # between two steps: time for a thread that waits for its turn
    monkeypatch.setattr(engine_thread, "_arrived", lambda *args, **more: time.sleep(0.01) or arrived(*args, **more))
    decoder, gate, is_set = make_rows("radar", 2), Late(), threading.Event()
    until = [gate, lambda ids, scores: is_set.is_set()]
    texts = [decoder.rounds(PROMPTS[0], max_new_tokens=90, stopping_criteria=until)]
    texts += [decoder.rounds(PROMPTS[1], max_new_tokens=80, stopping_criteria=until[1:])]
    texts += [decoder.rounds(PROMPTS[2], max_new_tokens=30)]
    gate.asked.set()
    assert gate.reached.wait(60)
    assert decoder.engine._at_door
    setter = threading.Thread(target=lambda: (setattr(decoder, "policy", FixedDepth(1)), is_set.set()))
    setter.start()
    gate.opened.set()
    setter.join(60)
    for text, calls in zip(texts, (3, 3, 1), strict=True):
        assert {item.num_draft_calls for item in text if not item.is_prefill} == {calls}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a card's chunks are longer than all of these pages")
def test_a_prompt_that_waits_for_pages_begins_with_none_of_the_model_before():
    prompt = [(7 * i + i * i) % VOCAB for i in range(140)]
    decoder, gate = make_rows("plain", 2, max_length=300, cache_tokens=6 * PAGE), Late()
    decoder.generate([*prompt, 1], max_new_tokens=4, reuse_prefix=True)
    first = decoder.rounds(PROMPTS[0], max_new_tokens=30, stopping_criteria=[gate])
    second = decoder.rounds(PROMPTS[1], max_new_tokens=60)
    third = decoder.rounds([*prompt, 2], max_new_tokens=10, reuse_prefix=True)
    gate.asked.set()
    assert gate.reached.wait(60)
    assert not decoder.engine._at_door
    scaled(decoder)
    gate.opened.set()
    assert [len(tokens_of(text)) for text in (first, second)] == [30, 60]
    found, model = tokens_of(third), decoder.model
    assert third.rounds[0].num_reused_tokens == 0
    assert found == make_rows("plain", 1, model, max_length=300).generate([*prompt, 2], max_new_tokens=10).token_ids
