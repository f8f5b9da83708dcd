"""Fused projections: the same numbers from fewer products, and a model that stays what it was."""

import copy

import pytest
import torch
from fakes import FAMILIES, tiny_target
from torch import nn

from radar.target.layers import FusedLinears, fuse_projections, fused

IDS = torch.tensor([[1, 5, 3, 2, 8]])


def run(model):
    return model(IDS.to(model.device)).logits


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
        groups = fuse_projections(model, model.model.layers, model.lm_head)
        assert len(groups) == 4 * model.config.num_hidden_layers + 1
        calls = count_products(monkeypatch)
        torch.testing.assert_close(run(model), expected)
        plain = len(calls)
        with fused(groups):
            torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)
        # 7 projections of a layer become 4
        assert (plain, len(calls) - plain) == (5 * 7 + 1, 5 * 4 + 1)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_is_fused_once_and_its_weights_keep_their_values():
    model = tiny_target()
    before = copy.deepcopy(model.state_dict())
    groups = fuse_projections(model, model.model.layers, model.lm_head)
    assert fuse_projections(model, model.model.layers, model.lm_head) is groups
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("change", ["cast", "assign", "in place"])
def test_weights_that_changed_since_are_the_ones_used(change):
    model = tiny_target("qwen2")
    groups = fuse_projections(model, model.model.layers, model.lm_head)
    if change == "cast":
        model.double()
    elif change == "assign":
        model.model.layers[1].self_attn.k_proj.weight.data = torch.randn(16, 32, device=model.device)
    else:
        model.model.layers[2].mlp.up_proj.weight.data.mul_(-1.0)
    with torch.inference_mode():
        expected = run(model)
        with fused(groups):
            torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)


def test_a_copy_of_the_model_is_a_model_of_its_own():
    model = tiny_target()
    fuse_projections(model, model.model.layers, model.lm_head)
    twin = copy.deepcopy(model)
    twin.model.layers[0].self_attn.q_proj.weight.data.zero_()
    with torch.inference_mode():
        assert not torch.equal(run(twin), run(model))
        with fused(fuse_projections(twin, twin.model.layers, twin.lm_head)):
            torch.testing.assert_close(run(twin), run(copy.deepcopy(twin)), atol=1e-4, rtol=1e-4)


def test_an_error_inside_leaves_plain_layers():
    model = tiny_target()
    with pytest.raises(RuntimeError, match="stop"), fused(fuse_projections(model, model.model.layers, model.lm_head)):
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
    assert len(fuse_projections(model, layers, model.lm_head)) == 4 * 5 + 1 - 3


def test_layers_called_out_of_order_do_not_get_old_results():
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    group = FusedLinears([first, second])
    with torch.inference_mode(), fused([group]):
        first(torch.randn(1, 3))
        second(torch.randn(1, 3))
        with pytest.raises(IndexError):
            second(torch.randn(1, 3))
