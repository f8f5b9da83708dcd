"""Fused projections: the same numbers from fewer products, and a model that stays what it was."""

import copy
from contextlib import contextmanager

import pytest
import torch
from fakes import FAMILIES, tiny_target
from torch import nn

from radar.target.layers import FusedLinears, fuse_projections, fused
from radar.target.running import Owner, running

IDS = torch.tensor([[1, 5, 3, 2, 8]])


def run(model):
    return model(IDS.to(model.device)).logits


OWNER = Owner()


def groups_of(model):
    return fuse_projections(model.model.layers, [model.lm_head], OWNER)


@contextmanager
def running_fused(groups):
    with fused(groups), running(OWNER, None):
        yield


def count_products(monkeypatch):
    calls = []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *a: calls.append(a[1].shape) or plain(*a))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_logits_from_fewer_products(family, monkeypatch):
    model = tiny_target(family)
    with torch.inference_mode():
        expected = run(model)
        groups = groups_of(model)
        assert len(groups) == 4 * model.config.num_hidden_layers + 1
        calls = count_products(monkeypatch)
        torch.testing.assert_close(run(model), expected)
        plain = len(calls)
        with running_fused(groups):
            torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)
        # 7 projections of a layer become 4
        assert (plain, len(calls) - plain) == (5 * 7 + 1, 5 * 4 + 1)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_fused_weights_keep_their_values():
    model = tiny_target()
    before = copy.deepcopy(model.state_dict())
    groups_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("change", ["cast", "assign", "in place", "bias"])
def test_weights_that_changed_since_are_the_ones_used(change):
    model = tiny_target("qwen2")
    groups = groups_of(model)
    if change == "cast":
        model.bfloat16()
    elif change == "assign":
        model.model.layers[1].self_attn.k_proj.weight.data = torch.randn(16, 32, device=model.device)
    elif change == "bias":
        model.model.layers[1].self_attn.k_proj.bias.data = torch.randn(16, device=model.device)
    else:
        model.model.layers[2].mlp.up_proj.weight.data.mul_(-1.0)
    with torch.inference_mode():
        expected = run(model)
        with running_fused(groups):
            tolerance = 0.1 if change == "cast" else 1e-4  # of logits around 5: wrong weights are far off
            torch.testing.assert_close(run(model), expected, atol=tolerance, rtol=tolerance)


def test_a_copy_of_the_model_is_a_model_of_its_own():
    model = tiny_target()
    groups_of(model)
    twin = copy.deepcopy(model)
    twin.model.layers[0].self_attn.q_proj.weight.data.zero_()
    with torch.inference_mode():
        assert not torch.equal(run(twin), run(model))
        with running_fused(groups_of(twin)):
            torch.testing.assert_close(run(twin), run(copy.deepcopy(twin)), atol=1e-4, rtol=1e-4)


def test_an_error_inside_leaves_plain_layers():
    model = tiny_target()
    with pytest.raises(RuntimeError, match="stop"), running_fused(groups_of(model)):
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in model.modules())


class Adapter(nn.Linear):
    """As LoRA layers are: a subclass."""


def test_what_is_not_a_plain_linear_is_left_alone():
    model = tiny_target()
    layers = model.model.layers
    layers[0].self_attn.q_proj.__class__ = Adapter
    layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    layers[2].self_attn.v_proj.to(torch.float64)
    assert len(fuse_projections(layers, [model.lm_head], OWNER)) == 4 * 5 + 1 - 3


def test_layers_called_out_of_order_do_not_get_old_results():
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    group = FusedLinears([first, second], OWNER)
    with torch.inference_mode(), running_fused([group]):
        first(torch.randn(1, 3))
        second(torch.randn(1, 3))
        with pytest.raises(IndexError):
            second(torch.randn(1, 3))


def test_nothing_of_the_weights_is_held_outside_of_a_run():
    """Cast or offloaded, the old storages are nobody's: a base tensor or a product would keep them alive."""
    model = tiny_target()
    groups = groups_of(model)
    with torch.inference_mode(), running_fused(groups):
        run(model)
    for group in groups:
        assert not any(isinstance(value, torch.Tensor) for value in vars(group).values())
        assert (group._product.weight, group._product.bias, group._product.parts) == (None, None, ())


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad])
def test_a_model_can_be_trained_after_it_was_fused(made_in):
    model = tiny_target()
    with made_in():
        groups_of(model)
    model.train()(IDS.to(model.device), labels=IDS.to(model.device)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_fused_model_can_be_saved_and_loaded(tmp_path):
    model = tiny_target()
    groups_of(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).to(model.device)
    assert torch.equal(run(again), run(model))


class Wrapped(torch.Tensor):
    """As quantised weights are: a tensor that is not what its type says."""


def test_wrapped_weights_are_left_alone():
    model = tiny_target()
    linear = model.model.layers[0].mlp.gate_proj
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(Wrapped), requires_grad=False)
    assert len(groups_of(model)) == 4 * 5 + 1 - 1


def test_a_forward_set_on_a_layer_is_used_and_stays():
    model = tiny_target()
    linear = model.model.layers[0].mlp.down_proj
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 2
    patched = linear.forward
    groups = groups_of(model)
    with torch.inference_mode():
        expected = run(model)
        with running_fused(groups):
            torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)
    assert linear.forward is patched
