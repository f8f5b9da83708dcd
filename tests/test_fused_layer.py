"""Fused layers: the numbers of stock layers, where nothing but stock layers is, and a model that stays what it was."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fakes import DEVICE, FAMILIES, give_pages
from fakes import tiny_target as plain_target
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from radar.target import fused_layer
from radar.target.model import TargetModel

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]], device=DEVICE)
IDS = torch.tensor([[7, 8, 9, 10]], device=DEVICE)
TREE = (
    torch.tensor([[[0b0001], [0b0011], [0b0101], [0b1101]]], device=DEVICE),
    torch.tensor([[0, 1, 1, 2]], device=DEVICE),
)
KERNELS = ("rms_norm", "add_rms_norm", "rotate_store", "silu_mul")


def tiny_target(family="llama"):
    """With norms that differ."""
    model = plain_target(family)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    return model


def scores(model, *, fuse=True, taps=(0, 2, 4)):
    """Logits and taps of a prompt and of a tree behind it, and what is in the cache then."""
    target = TargetModel(model, max_length=64, max_rows=16, tap_layers=taps)
    target.bound._groups = []
    if fuse:
        target.bound.fuse()
    with torch.inference_mode():
        first = target.verify_chain(PROMPT)
        target.advance(PROMPT.shape[1])
        second = target.verify(IDS, TREE[1], TREE[0])
    found = *first, *second, target.cache.keys, target.cache.values
    if fuse:
        assert not any("forward" in module.__dict__ for module in model.modules() if not hasattr(module, "patched"))
        normed = target.bound._groups[0]._normed
        assert normed.hidden is normed.normed is None
    return found


def assert_the_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)  # of states around 10


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels that were called, in order."""
    names = []

    def counting(name, op):
        return lambda *args, **options: names.append(name) or op(*args, **options)

    for name in KERNELS:
        monkeypatch.setattr(fused_layer, name, counting(name, getattr(fused_layer, name)))
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_stock_layers(family, calls):
    model = tiny_target(family)
    expected = scores(model, fuse=False)
    assert calls == []
    assert_the_same(scores(model), expected)
    # of the first layer alone the norm is a kernel of its own; the last addition is fused with the model's norm
    layer = ["rotate_store", "add_rms_norm", "silu_mul", "add_rms_norm"]
    assert calls == 2 * ["rms_norm", *5 * layer]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_kernels_do_what_their_references_do(family, monkeypatch):
    model = tiny_target(family)
    expected = scores(model, fuse=False)
    for name in KERNELS:
        monkeypatch.setattr(fused_layer, name, functools.partial(getattr(fused_layer, name), backend="triton"))
    assert_the_same(scores(model), expected)


def hook_on_a_layer(model):
    """In place: its output is the tensor that it was, with other values."""
    model.model.layers[2].register_forward_hook(lambda _module, _args, out: out[..., :3].mul_(-1) is None or None)


def hook_inside(model):
    model.model.layers[2].mlp.act_fn.register_forward_hook(lambda _module, _args, out: out * 0.5)


def hook_before_a_norm(model):
    model.model.layers[2].input_layernorm.register_forward_pre_hook(lambda _module, args: (args[0] + 3,))


def hook_before_the_last_norm(model):
    model.model.norm.register_forward_pre_hook(lambda _module, args: (args[0] + 3,))


def hook_on_a_projection(model):
    model.model.layers[2].self_attn.o_proj.register_forward_hook(lambda _module, _args, out: out * 0.5)


class Adapter(nn.Linear):
    """As LoRA layers are: a subclass."""

    def forward(self, x):
        return 2 * super().forward(x)


def adapter(model):
    model.model.layers[2].mlp.down_proj.__class__ = Adapter


def forward_of_its_own(model):
    mlp = model.model.layers[2].mlp
    mlp.forward, mlp.patched = (lambda x: 2 * type(mlp).forward(mlp, x)), True


class Norm(nn.Module):
    def forward(self, x):
        return x * 0.1


def other_norm(model):
    model.model.layers[2].input_layernorm = Norm()


def other_activation(model):
    model.model.layers[2].mlp.act_fn = nn.ReLU()


CHANGES = [
    hook_on_a_layer, hook_inside, hook_before_a_norm, hook_on_a_projection, adapter, forward_of_its_own, other_norm,
    other_activation,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_is_not_stock_runs_as_it_is(change, calls):
    model = tiny_target()
    plain = scores(model)
    calls.clear()
    change(model)
    expected = scores(model, fuse=False)
    assert not torch.allclose(plain[2], expected[2], atol=1e-3)
    assert_the_same(scores(model), expected)
    layer = ["rotate_store", "add_rms_norm", "silu_mul"]
    before, after = [*layer, "add_rms_norm"], ["rms_norm", *layer, "add_rms_norm", *layer, "add_rms_norm"]
    assert calls == 2 * ["rms_norm", *before, *layer, *after]


def test_a_last_norm_that_is_not_stock_runs_as_it_is(calls):
    model = tiny_target()
    hook_before_the_last_norm(model)
    expected = scores(model, fuse=False)
    assert_the_same(scores(model), expected)
    assert calls.count("add_rms_norm") == 2 * 9


def test_layers_with_a_norm_of_another_type_are_not_ours():
    model = tiny_target()
    model.model.layers[0].post_attention_layernorm.double()
    assert not fused_layer._is_stock_layer(model.model.layers[0])
    assert fused_layer._is_stock_layer(model.model.layers[1])


def test_a_patched_class_runs_as_it_is(monkeypatch, calls):
    model, plain = tiny_target(), LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x) * 2)
    expected = scores(model, fuse=False)
    assert_the_same(scores(model), expected)
    assert "silu_mul" not in calls


def test_hooks_of_the_process_see_every_module(calls):
    model, seen = tiny_target(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        scores(model)
    finally:
        handle.remove()
    assert seen.count("LlamaMLP") == 2 * 5
    assert calls == []


def test_a_hook_that_comes_with_the_text_is_called(calls):
    """It is looked for at every run."""
    model, seen = tiny_target(), []
    target = TargetModel(model, max_length=64, max_rows=16)
    target.bound.fuse()
    with torch.inference_mode():
        target.verify_chain(PROMPT)
        model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1) and None)
        target.verify_chain(PROMPT)
    assert seen == [1]
    assert calls.count("silu_mul") == 5 + 4


def test_the_many_rows_of_a_prompt_run_the_same_kernels(calls, monkeypatch):
    target = TargetModel(tiny_target(), max_length=64, max_rows=16)
    target.bound.fuse()
    with torch.inference_mode():
        expected = target.verify_chain(PROMPT)[0]
        once = calls.copy()
        calls.clear()
        monkeypatch.setattr("radar.target.model.LEAST_ROWS", 1)
        target.has_flash = True
        found = target.verify_chain(PROMPT)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert calls == once


def test_another_thread_runs_stock_layers(calls):
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=16)

    @torch.inference_mode()
    def stock():
        return model(input_ids=PROMPT).logits

    expected = stock()
    target.bound.fuse()
    with ThreadPoolExecutor(1) as pool, target.bound.running(target.cache, target.tap_layers):
        assert "forward" in model.model.layers[0].__dict__
        assert torch.equal(pool.submit(stock).result(600), expected)
    assert calls == []


def test_an_error_between_two_layers_leaves_nothing():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=16)
    target.bound.fuse()

    class Failing(nn.ModuleList):
        def __getitem__(self, index):
            return [super().__getitem__(0), None] if isinstance(index, slice) else super().__getitem__(index)

    model.model.layers.__class__ = Failing
    with pytest.raises(TypeError, match="not callable"), torch.inference_mode():
        target.verify_chain(PROMPT)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert target.bound._groups[0]._normed.hidden is None


def test_what_a_layer_leaves_is_for_the_next_one_and_its_own_output():
    """The model's forward may stop at an earlier layer, or do something between two."""
    model = tiny_target()
    model.config.num_hidden_layers = 4
    expected = scores(model, fuse=False, taps=(0, 2))
    assert_the_same(scores(model, taps=(0, 2)), expected)

    class Raised(nn.ModuleList):
        """Hands out the layers with a step between."""

        def __getitem__(self, index):
            return [functools.partial(self.call, layer) for layer in super().__getitem__(index)]

        def call(self, layer, x, **options):
            return layer(x, **options) + 3

    plain = expected
    model.model.layers.__class__ = Raised
    expected = scores(model, fuse=False, taps=())
    assert not torch.allclose(expected[2], plain[2], atol=1e-3)
    assert_the_same(scores(model, taps=()), expected)


def test_a_batch_starts_where_each_of_its_texts_ends():
    model = tiny_target()
    found = []
    for fuse in (False, True):
        target = TargetModel(model, max_length=64, max_rows=16, batch_size=2)
        give_pages(target)
        target.bound._groups = []
        if fuse:
            target.bound.fuse()
        with torch.inference_mode():
            target.verify_chain(PROMPT.expand(2, -1))
            target.advance(torch.tensor([8, 5], device=DEVICE))
            found.append((*target.verify_chain(IDS.expand(2, -1)), target.cache.keys))
    assert_the_same(*found)


def test_other_classes_are_not_ours():
    assert not fused_layer._is_stock_layer(nn.TransformerEncoderLayer(8, 2))
    layer = tiny_target().model.layers[0]
    layer.__class__ = type("Mine", (type(layer),), {})
    assert not fused_layer._is_stock_layer(layer)
