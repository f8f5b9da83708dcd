"""Models with PEFT adapters: what changes weights is decoded with, as it is set at the call; the rest is refused."""

import peft
import pytest
import torch
from adapted import KINDS, PROMPT, PROMPTS, lora, make, with_two
from fakes import hf_greedy, tiny_target

from radar import AutoregressiveDecoder
from radar.engine import build
from radar.errors import UsageError
from radar.target import fused_layer
from radar.target.bound import BoundModel
from radar.target.fingerprint import fingerprint
from radar_kernels import silu_mul


def states(model):
    """Sets a model's adapters in one way after the other."""
    yield "one"
    model.set_adapter("two")
    yield "two"
    with model.disable_adapter():
        yield "none"
    yield "two"
    model.add_weighted_adapter(["one", "two"], [0.7, -1.0], "both", combination_type="cat")
    model.set_adapter("both")
    yield "both"
    model.set_adapter("one")
    model.merge_adapter()
    yield "one"
    model.unmerge_adapter()
    model.base_model.set_adapter(["one", "two"])
    yield "both at once"
    model.set_adapter("one")
    model.delete_adapter("two")
    model.add_adapter("two", lora(5, "v_proj", "down_proj"))
    model.set_adapter("two")
    yield "another two"


def test_each_text_is_of_the_adapters_that_are_set():
    """One decoder of each kind through all states; the prefix of the text before is at hand each time."""
    model = with_two()
    stock, seen = model.get_base_model(), {}
    ours = [make(model, policy) for policy in KINDS]
    for name in states(model):
        expected = hf_greedy(stock, PROMPT, 8)
        for decoder in ours:
            assert decoder.generate(PROMPT, max_new_tokens=8, reuse_prefix=True).token_ids == expected, name
        assert seen.setdefault(name, expected) == expected
    assert len(set(map(tuple, seen.values()))) == len(seen)


@pytest.mark.parametrize("policy", KINDS[1:], ids=["radar", "plain"])
def test_texts_that_share_rounds_are_of_the_adapters_that_are_set(policy):
    model = with_two()
    stock, decoder = model.get_base_model(), make(model, policy, rows=4)
    for _ in states(model):
        texts = decoder.generate(PROMPTS, max_new_tokens=5, reuse_prefix=True)
        assert [text.token_ids for text in texts] == [hf_greedy(stock, prompt, 5) for prompt in PROMPTS]


def dora(model):
    return peft.get_peft_model(model, lora(1, use_dora=True, use_rslora=True))


def ia3(model):
    config = peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    )
    return peft.get_peft_model(model, config)


def saved_modules(model):
    """An output layer and an embedding of the adapter's own, which the head reads as well."""
    wrapped = peft.get_peft_model(model, lora(1, modules_to_save=["lm_head", "embed_tokens"]))
    with torch.no_grad():
        wrapped.base_model.model.lm_head.weight.neg_()
        wrapped.base_model.model.model.embed_tokens.weight.mul_(1.5)
    return wrapped


def new_tokens(model):
    wrapped = peft.get_peft_model(model, lora(1, trainable_token_indices=[4, 9]))
    with torch.no_grad():
        wrapped.base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta["default"].fill_(0.5)
    return wrapped


def one_layer(model):
    return peft.get_peft_model(model, lora(1, "o_proj", layers_to_transform=[1]))


def mixed_kinds(model):
    wrapped = peft.get_peft_model(model, lora(1), adapter_name="one", mixed=True)
    wrapped.add_adapter("two", peft.LoHaConfig(r=2, target_modules=["v_proj"], init_weights=False))
    wrapped.set_adapter(["one", "two"])
    return wrapped


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers run as ours on a CPU too; how often one did."""
    refresh, calls = BoundModel.refresh, []

    def fusing(self):
        refresh(self)
        if not self._groups:
            self.fuse()
            self._print = fingerprint(self.model)
        return self._print

    def counted(*args, **kwargs):
        calls.append(1)
        return silu_mul(*args, **kwargs)

    monkeypatch.setattr(BoundModel, "refresh", fusing)
    monkeypatch.setattr(fused_layer, "silu_mul", counted)
    return calls


@pytest.mark.parametrize(
    "put", [dora, ia3, saved_modules, new_tokens, one_layer, mixed_kinds], ids=lambda p: p.__name__
)
def test_adapters_of_every_kind(put, as_on_a_gpu):
    """Beside kernels of ours, which stand in for the layers that have none. Then taken off."""
    stock = tiny_target()
    without = hf_greedy(stock, PROMPT, 8)
    model = put(stock).eval()
    expected = hf_greedy(stock, PROMPT, 8)
    assert expected != without
    for policy in KINDS[1:]:
        as_on_a_gpu.clear()
        decoder = make(model, policy)
        assert decoder.generate(PROMPT, max_new_tokens=8).token_ids == expected
        assert bool(as_on_a_gpu) == (put is one_layer)  # all others change every layer
        with model.disable_adapter():
            found = decoder.generate(PROMPT, max_new_tokens=8).token_ids
        assert found == without


REFUSED = [
    (
        lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "prompt tuning, whose virtual tokens",
    ),
    (
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "prompt tuning, whose virtual tokens",
    ),
    (lambda: lora(1, alora_invocation_tokens=[2]), "an activated LoRA, which begins to count where"),
    (lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"), "is ADAPTION_PROMPT"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_adapters_that_change_more_than_layers_are_refused_by_name(config, message):
    model = peft.get_peft_model(tiny_target(), config())
    with pytest.raises(UsageError, match=message):
        AutoregressiveDecoder(model, max_length=64)


def test_one_that_is_put_on_later_is_refused_too():
    model = with_two()
    decoder = make(model, "plain")
    model.add_adapter("late", lora(3, alora_invocation_tokens=[2]))
    model.set_adapter("late")
    with pytest.raises(UsageError, match="'late' is an activated LoRA"):
        decoder.generate(PROMPT, max_new_tokens=4)


def test_layers_that_may_ask_the_host_go_without_graphs(monkeypatch):
    monkeypatch.setattr(build, "choose_engine", lambda name, device: name or "graph")
    plain, ours = tiny_target(), dora(tiny_target()).get_base_model()
    others = [new_tokens(tiny_target()), peft.get_peft_model(tiny_target(), peft.VeraConfig(target_modules=["q_proj"]))]
    assert build._takes_graphs(None, plain)
    assert build._takes_graphs("graph", ours)
    for model in [wrapped.get_base_model() for wrapped in others]:
        assert not build._takes_graphs(None, model)
        with pytest.raises(UsageError, match=r"cannot hold adapter 'default'.*which may ask the host"):
            build._takes_graphs("graph", model)
