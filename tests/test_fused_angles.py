"""Rotary angles by our kernel: of stock modules whose frequencies are fixed, and of no others."""

import pytest
import torch
from fakes import DEVICE, FAMILIES, tiny_target

from radar.target import fused_layer
from radar.target.model import TargetModel
from radar_kernels import rotary_angles

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]], device=DEVICE)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(fused_layer, "rotary_angles", lambda *args: made.append(args) or rotary_angles(*args))
    return made


def logits(model, *, fuse):
    target = TargetModel(model, max_length=64, max_rows=16)
    target.bound._groups = []
    if fuse:
        target.bound.fuse()
    with torch.inference_mode():
        target.verify_chain(PROMPT)
        target.advance(PROMPT.shape[1])
        found = target.verify_chain(PROMPT[:, :3])[0]
    assert "forward" not in model.model.rotary_emb.__dict__
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [{}, {"rope_parameters": YARN}], ids=["default", "yarn"])
def test_the_numbers_of_stock_modules(family, change, calls):
    model = tiny_target(family, **change)
    expected = logits(model, fuse=False)
    assert not calls
    torch.testing.assert_close(logits(model, fuse=True), expected, atol=1e-4, rtol=1e-5)
    assert len(calls) == 2


def hook(model):
    model.model.rotary_emb.register_forward_hook(lambda _module, _args, out: (out[0] * 0.5, out[1]))


def other_class(model):
    kind = type(model.model.rotary_emb)
    model.model.rotary_emb.__class__ = type(
        "Other", (kind,), {"forward": lambda self, *a, **b: kind.forward(self, *a, **b)}
    )


def other_type(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.double()


@pytest.mark.parametrize("change", [hook, other_class, other_type], ids=lambda change: change.__name__)
def test_a_module_that_is_not_stock_runs_as_it_is(change, calls):
    model = tiny_target()
    change(model)
    expected = logits(model, fuse=False)
    torch.testing.assert_close(logits(model, fuse=True), expected, atol=1e-4, rtol=1e-5)
    assert not calls


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_another_forward_has_moved_are_those_of_a_short_text(kind, calls):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    model = tiny_target(rope_parameters=parameters | factors)
    expected, rotary = logits(model, fuse=False), model.model.rotary_emb
    before = rotary.inv_freq.clone()
    rotary(torch.zeros(1, device=DEVICE), torch.tensor([[600]], device=DEVICE))
    assert not torch.equal(before, rotary.inv_freq)
    torch.testing.assert_close(logits(model, fuse=True), expected, atol=1e-4, rtol=1e-5)
    assert len(calls) == 2


def test_frequencies_are_read_where_they_are(calls):
    model = tiny_target()
    before = logits(model, fuse=True)
    model.model.rotary_emb.inv_freq *= 0.5
    after = logits(model, fuse=True)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, logits(model, fuse=False), atol=1e-4, rtol=1e-5)
