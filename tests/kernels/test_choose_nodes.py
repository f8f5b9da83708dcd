"""choose_nodes: the kernel against the reference, which is compared with a torch module."""

import pytest
import torch
from torch import nn

from radar_kernels import NodeWeights, choose_nodes, reference

BACKENDS = ["triton", "torch"]
SIZES = {"as trained": (1, 128, 10, 5, 64), "odd sizes": (3, 33, 7, 3, 17), "one choice": (2, 16, 4, 1, 8)}


def case(batch, hidden, inputs, choices, middle, device):
    torch.manual_seed(batch * hidden)
    head = nn.Sequential(nn.Linear(hidden + inputs + choices, middle), nn.ReLU(), nn.Linear(middle, choices)).to(device)
    weights = NodeWeights(head[0].weight.data, head[0].bias.data, head[2].weight.data, head[2].bias.data)
    shapes = (batch, hidden), (batch, inputs), (batch, choices)
    return head, weights, [torch.randn(shape, device=device) for shape in shapes]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_kernel_equals_reference_equals_modules(sizes, device):
    head, weights, parts = case(*sizes, device)
    got = choose_nodes(*parts, weights, backend="triton")
    expected = reference.choose_nodes(*parts, weights)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected.logits, head(torch.cat(parts, -1)), rtol=1e-5, atol=1e-5)
    assert torch.equal(got.chosen, got.logits.argmax(-1))
    assert torch.equal(got.chosen, expected.chosen)
    assert got.chosen.dtype == torch.int64


def test_all_choices_are_taken(device):
    _, weights, parts = case(200, 8, 3, 4, 16, device)
    for backend in BACKENDS:
        assert set(choose_nodes(*parts, weights, backend=backend).chosen.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_below_the_floor_counts_as_it(backend, device):
    _, weights, (hidden, scores, mass) = case(2, 8, 3, 4, 16, device)
    scores[:, 1:] = -torch.inf
    low = choose_nodes(hidden, scores, mass, weights, floor=-100.0, backend=backend)
    same = choose_nodes(hidden, scores.clamp(min=-100.0), mass, weights, backend=backend)
    assert torch.equal(low.logits, same.logits)
    assert low.logits.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equals_the_first(backend, device):
    _, weights, parts = case(2, 8, 3, 4, 16, device)
    flat = weights._replace(
        weight3=torch.zeros_like(weights.weight3), bias3=torch.tensor([0.0, 1, 1, 0], device=device)
    )
    assert choose_nodes(*parts, flat, backend=backend).chosen.tolist() == [1, 1]


def test_cpu_runs_the_reference(monkeypatch):
    _, weights, parts = case(*SIZES["odd sizes"], torch.device("cpu"))
    monkeypatch.setattr(reference, "choose_nodes", lambda *args, **kwargs: "reference")
    assert choose_nodes(*parts, weights) == "reference"


def test_errors_say_what_was_expected():
    _, weights, (hidden, scores, mass) = case(*SIZES["odd sizes"], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"mass must be float32 \[3, 2\], got torch.float64"):
        choose_nodes(hidden, scores, mass[:, :2].double(), weights)
    with pytest.raises(ValueError, match=r"weight0 must be float32 \[17, 42\], got torch.float32 \[17, 43\]"):
        choose_nodes(hidden, scores, mass[:, :2], weights)
