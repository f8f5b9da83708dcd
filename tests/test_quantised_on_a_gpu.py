"""Quantised targets, and what is otherwise on a GPU: layers that no CUDA graph may hold, experts of another type."""

from types import SimpleNamespace

import pytest
import torch
from fakes import hf_greedy, tiny_target
from tiny_families import tiny_family

from radar.engine import build
from radar.errors import UsageError
from radar.target.quantised import unify

PROMPT, NEW = [3, 1, 4, 1, 5, 9, 2, 6], 8


def test_unpacked_experts_are_of_the_models_type():
    model = tiny_family("gpt_oss", layer_types=["full_attention"] * 5)
    experts = model.model.layers[1].mlp.experts
    experts.down_proj.data = experts.down_proj.data.bfloat16().float()
    expected = hf_greedy(model, PROMPT, NEW)
    experts.down_proj.data = experts.down_proj.data.bfloat16()  # as transformers 5.17 leaves them
    unify(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert hf_greedy(model, PROMPT, NEW) == expected


def test_inputs_that_are_rounded_by_numbers_of_the_host_go_without_graphs(monkeypatch):
    monkeypatch.setattr(build, "choose_engine", lambda name, device: name or "graph")
    model = tiny_target()
    assert build._takes_graphs("graph", model)
    for inputs in (SimpleNamespace(dynamic=True, strategy="token"), SimpleNamespace(dynamic=False, strategy="tensor")):
        linear = model.model.layers[1].mlp.up_proj
        linear.quantization_scheme = SimpleNamespace(input_activations=inputs)
        assert not build._takes_graphs(None, model)
        with pytest.raises(UsageError, match=r"cannot hold .*layers.1.mlp.up_proj, whose.*weights alone"):
            build._takes_graphs("graph", model)
    linear.quantization_scheme = SimpleNamespace(input_activations=None)
    assert build._takes_graphs("graph", model)
