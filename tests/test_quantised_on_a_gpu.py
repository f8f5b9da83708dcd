"""Quantised targets, what a CPU does not show by itself: layers that no graph may hold, types of a library's own."""

from types import SimpleNamespace

import pytest
import torch
from fakes import hf_greedy, tiny_target
from quantised_files import write_fp8
from tiny_families import tiny_family
from transformers import AutoModelForCausalLM

from radar.engine import build
from radar.errors import UsageError
from radar.target.load import load_model
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


def test_a_type_that_a_library_insists_on_is_not_passed_off_as_the_one_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    folder = write_fp8(tiny_target(vocab_size=64, hidden_size=64, intermediate_size=96), tmp_path)
    real = AutoModelForCausalLM.from_pretrained

    def insisting(*args, **options):
        model, found = real(*args, **options)
        return model.half(), found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", insisting)
    with pytest.raises(UsageError, match=r"loads it as torch.float16 where torch.float32 is asked for: leave"):
        load_model(str(folder), device=torch.device("cpu"), dtype=torch.float32, progress=False)
    found = load_model(str(folder), device=torch.device("cpu"), dtype=None, progress=False)
    assert found.dtype == torch.float16


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
