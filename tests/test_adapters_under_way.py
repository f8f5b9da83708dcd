"""Adapters that change while texts are decoded: those texts end, the next ones are of the new adapters alone."""

import weakref

import peft
import pytest
import torch
from adapted import LONG, PROMPT, PROMPTS, lora, make, with_two
from fakes import hf_greedy, tiny_target
from rows_decoders import Gate, Late, make_rows, tokens_of

from radar.engine.build import RowsRecipe
from radar.errors import UsageError
from radar_kernels.reference_canonical import PAGE


def switched(model):
    model.set_adapter("two")


def merged(model):
    model.merge_adapter()


def scaled(model):
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(0.5)


def taken_off(model):
    model.merge_and_unload()


HELD = []


def unloaded(model):
    """While somebody holds the modules that are taken off."""
    HELD[:] = model.modules()
    if hasattr(model.unload(), "peft_config"):
        pytest.skip("this release of PEFT leaves its configs")


CHANGES = [switched, merged, scaled, taken_off, unloaded]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_text_under_way_ends_when_adapters_change(change):
    model = with_two()
    decoder = make(model, None)
    text = decoder.rounds(PROMPT, max_new_tokens=30)
    next(text), next(text)
    change(model)
    with pytest.raises(UsageError, match="adapters were switched, scaled, merged or taken off"):
        next(text)
    assert text.has_ended
    assert decoder.generate(PROMPT, max_new_tokens=8, reuse_prefix=True).token_ids == hf_greedy(
        decoder.model, PROMPT, 8
    )


def test_what_a_text_of_two_adapters_left_is_not_gone_on_from():
    """The caches hold a row that the other adapter made, and the first is back."""
    model = with_two()
    decoder = make(model, "plain")
    text, prefix = decoder.rounds(PROMPT[:2], max_new_tokens=30), decoder.engine.admission.prefix
    next(text)
    model.set_adapter("two")
    with pytest.raises(UsageError):
        next(text)
    model.set_adapter("one")
    prompt = [*prefix.ids, 5]
    assert decoder.generate(prompt, max_new_tokens=8, reuse_prefix=True).token_ids == hf_greedy(
        decoder.model, prompt, 8
    )


def test_a_text_that_waited_for_its_turn_is_not_gone_on_with_under_another_adapter():
    model = with_two()
    decoder = make(model, "plain")
    first, second = (decoder.rounds(prompt, max_new_tokens=8) for prompt in PROMPTS[:2])
    next(first)
    model.set_adapter("two")
    assert tokens_of(second) == hf_greedy(decoder.model, PROMPTS[1], 8)
    with pytest.raises(UsageError, match="adapters were switched"):
        next(first)


def test_the_first_adapter_ends_texts_of_the_model_without():
    model = tiny_target()
    decoder = make(model, "plain")
    text = decoder.rounds(PROMPT, max_new_tokens=8)
    next(text)
    peft.get_peft_model(model, lora(1))
    with pytest.raises(UsageError, match="adapters were switched"):
        next(text)


@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_texts_that_share_rounds_end_when_adapters_change_and_those_that_wait_are_of_the_new_ones(kind):
    """Two rows: one text is held up in a criterion, one is beside it, and one is asked for behind the change."""
    model, gate = with_two(), Gate()
    decoder = make_rows(kind, 2, model)
    first = decoder.rounds(PROMPTS[0], max_new_tokens=40, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    beside = decoder.rounds(PROMPTS[1], max_new_tokens=40)
    model.set_adapter("two")
    behind = decoder.rounds(PROMPTS[2], max_new_tokens=8)
    gate.opened.set()
    with pytest.raises(UsageError, match="adapters were switched"):
        tokens_of(first)
    assert tokens_of(behind) == hf_greedy(decoder.model, PROMPTS[2], 8)
    assert tokens_of(beside) == hf_greedy(decoder.model, PROMPTS[1], 40)  # had not begun


@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_a_prompt_that_waits_for_a_row_is_of_the_new_adapters(kind):
    """It was taken in with the others, and nobody has seen anything of it."""
    model, gate = with_two(), Late()
    decoder = make_rows(kind, 2, model)
    full = [decoder.rounds(PROMPTS[0], max_new_tokens=40, stopping_criteria=[gate])]
    full += [decoder.rounds(PROMPTS[1], max_new_tokens=40)]
    behind = decoder.rounds(PROMPTS[2], max_new_tokens=8)
    gate.asked.set()
    assert gate.reached.wait(60)
    assert decoder.engine._at_door
    model.set_adapter("two")
    gate.opened.set()
    for text in full:
        with pytest.raises(UsageError, match="adapters were switched"):
            tokens_of(text)
    assert tokens_of(behind) == hf_greedy(decoder.model, PROMPTS[2], 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a hook's Python runs when graphs are made")
def test_a_prompt_in_whose_pass_adapters_changed_is_not_gone_on_from():
    """Its page is of the second, and the first is back."""
    model = with_two()
    once = iter([model.set_adapter])
    model.get_base_model().model.layers[0].register_forward_pre_hook(lambda *_: next(once, lambda _: None)("two"))
    decoder = make_rows("plain", 2, model)
    with pytest.raises(UsageError, match="adapters were switched"):
        decoder.generate(LONG, max_new_tokens=4, reuse_prefix=True)
    model.set_adapter("one")
    for behind in range(4):
        prompt = [*LONG[: PAGE + 1], behind]
        found = decoder.generate(prompt, max_new_tokens=4, reuse_prefix=True).token_ids
        assert found == hf_greedy(decoder.model, prompt, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a hook's Python runs when graphs are made")
@pytest.mark.parametrize("by_host", [False, True])
def test_a_token_in_whose_pass_adapters_changed_is_not_taken(by_host):
    """The last one, behind which nothing would be looked at; with a processor its pass is made within the round."""
    model = with_two()
    passes = iter([lambda _: None] * 3 + [model.set_adapter])
    model.get_base_model().model.layers[0].register_forward_pre_hook(lambda *_: next(passes)("two"))
    decoder = make_rows("plain", 2, model)
    processors = [lambda ids, scores: scores] if by_host else None
    text = decoder.rounds(PROMPT, max_new_tokens=4, logits_processor=processors)
    with pytest.raises(UsageError, match="adapters were switched"):
        tokens_of(text)
    assert text.token_ids == hf_greedy(with_two(), PROMPT, 3)


def test_a_text_that_waits_while_the_others_end_is_of_the_new_adapters():
    """It may join, by what the model was when the step began; then they are switched."""
    model, gate = with_two(), Gate()
    decoder = make_rows("plain", 2, model)
    engine = decoder.engine
    entered = engine.entered

    def switching():
        engine.entered = entered
        model.set_adapter("two")
        return entered()

    first = decoder.rounds(PROMPTS[0], max_new_tokens=40, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    beside = decoder.rounds(PROMPTS[1], max_new_tokens=8)
    engine.entered = switching
    gate.opened.set()
    with pytest.raises(UsageError, match="adapters were switched"):
        tokens_of(first)
    assert tokens_of(beside) == hf_greedy(decoder.model, PROMPTS[1], 8)


def test_there_is_one_engine_at_a_time(monkeypatch):
    """The one before is gone when the next is built: for who asks for it behind an error, and for the next text."""
    model, gate, build = with_two(), Gate(), RowsRecipe.build
    decoder = make_rows("plain", 2, model)
    engines = [weakref.ref(decoder.engine)]

    def building(*given):
        assert [engine() for engine in engines] == [None] * len(engines)
        engine = build(*given)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(RowsRecipe, "build", building)
    text = decoder.rounds(PROMPT, max_new_tokens=40, stopping_criteria=[gate])
    assert gate.reached.wait(60)
    model.set_adapter("two")
    gate.opened.set()
    with pytest.raises(UsageError, match="adapters were switched"):
        tokens_of(text)
    assert decoder.engine is engines[1]()
    assert decoder.generate(PROMPT, max_new_tokens=4).token_ids == hf_greedy(decoder.model, PROMPT, 4)
    taken_off(model)  # and modules are others
    assert decoder.generate(PROMPT, max_new_tokens=4).token_ids == hf_greedy(decoder.model, PROMPT, 4)
    assert len(engines) == 3
