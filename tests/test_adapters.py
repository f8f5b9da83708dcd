"""Models with PEFT adapters: what changes weights is decoded with, as it is set at the call; the rest is refused."""

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target
from rows_decoders import Gate, make_rows, tokens_of

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import UsageError
from radar.target import fused_layer
from radar.target.bound import BoundModel
from radar.target.fingerprint import fingerprint
from radar_kernels import silu_mul
from radar_kernels.reference_canonical import PAGE

peft = pytest.importorskip("peft")

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LONG = [(7 * i + i // 3) % 17 for i in range(PAGE + 2)]
PROMPTS = [PROMPT, [*PROMPT, 7, 7], PROMPT[:3], LONG]
TREE = TreeConfig(total_tokens=12, max_calls=3, tree_top_k=4)
KINDS = [FixedDepth(2), None, "plain"]  # EAGLE-3, RADAR as it stops by itself, plain decoding


def lora(seed, *modules, **options):
    torch.manual_seed(seed)  # of the weights, which are made behind this
    return peft.LoraConfig(
        r=4, target_modules=list(modules) or ["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
        **options,
    )  # fmt: skip


def with_two(stock=None, **options):
    """A model with adapters "one" and "two", the first in use."""
    model = peft.get_peft_model(tiny_target() if stock is None else stock, lora(1), adapter_name="one")
    model.add_adapter("two", lora(2, "v_proj", "down_proj", **options))
    return model.eval()


def make(model, policy, rows=1):
    options = {"max_length": 96, "max_batch_size": rows}
    if policy == "plain":
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=tiny_draft(), policy=policy, tree=TREE, fallback=False, **options)


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
        expected = hf_greedy(stock, PROMPT, 12)
        for decoder in ours:
            assert decoder.generate(PROMPT, max_new_tokens=12, reuse_prefix=True).token_ids == expected, name
        assert seen.setdefault(name, expected) == expected
    assert len(set(map(tuple, seen.values()))) == len(seen)


@pytest.mark.parametrize("policy", KINDS[1:], ids=["radar", "plain"])
def test_texts_that_share_rounds_are_of_the_adapters_that_are_set(policy):
    model = with_two()
    stock, decoder = model.get_base_model(), make(model, policy, rows=4)
    for _ in states(model):
        texts = decoder.generate(PROMPTS, max_new_tokens=8, reuse_prefix=True)
        assert [text.token_ids for text in texts] == [hf_greedy(stock, prompt, 8) for prompt in PROMPTS]


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
        decoder = make(model, policy)
        as_on_a_gpu.clear()
        assert decoder.generate(PROMPT, max_new_tokens=8).token_ids == expected
        assert bool(as_on_a_gpu) == (put is one_layer)  # all others change every layer
        with model.disable_adapter():
            found = decoder.generate(PROMPT, max_new_tokens=8).token_ids
        assert found == without


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


CHANGES = [switched, merged, scaled, taken_off]


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
