"""Several rows, and a model or a policy that changes: what the texts under way and the next ones meet."""

import threading

import pytest
import torch
from rows_decoders import PROMPTS, Gate, alone, make_rows, tokens_of

from radar import FixedDepth, Threshold
from radar.errors import UsageError


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
