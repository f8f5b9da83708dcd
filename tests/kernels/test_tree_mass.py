"""tree_mass: the kernel against the reference, which is compared with plain Python."""

import math

import pytest
import torch

from radar_kernels import reference_tree, tree_mass
from tests.kernels.test_select_nodes import make

BACKENDS = ["triton", "torch"]
CASES = {"a small tree": (2, 4, 5, 5), "half of the levels": (3, 10, 8, 4), "the first one": (1, 5, 4, 1)}


@pytest.mark.parametrize("steps", [None, 1])
@pytest.mark.parametrize(("batch", "k", "levels", "written"), CASES.values(), ids=CASES.keys())
def test_kernel_equals_reference(batch, k, levels, written, steps, device):
    scores = make(k=k, levels=levels, written=written, batch=batch, steps=steps, device=device)[0][0]
    nodes = torch.tensor([2, 5, 16, 60, 4000], dtype=torch.int32, device=device)
    got = tree_mass(scores, nodes, backend="triton")
    expected = reference_tree.tree_mass(scores, nodes)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for row, line in zip(expected.tolist(), scores.tolist(), strict=True):
        best = sorted((math.exp(score) for score in line), reverse=True)
        assert row == pytest.approx([sum(best[: n - 1]) for n in nodes.tolist()], rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_are_worth_the_same_and_a_tree_may_be_empty(backend, device):
    half, never = math.log(0.5), -math.inf
    scores = torch.tensor([[half] * 4 + [never] * 2, [never] * 6], device=device)
    nodes = torch.tensor([1, 2, 4, 9], dtype=torch.int32, device=device)
    torch.testing.assert_close(
        tree_mass(scores, nodes, backend=backend), torch.tensor([[0.0, 0.5, 1.5, 2.0], [0.0] * 4], device=device)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_the_slots_will_do(backend, device):
    scores = torch.randn(3, 50, device=device).sub(5)
    nodes = torch.tensor([8, 30], dtype=torch.int32, device=device)
    whole, part = (tree_mass(one, nodes, backend=backend) for one in (scores[:, :20].contiguous(), scores[:, :20]))
    assert torch.equal(whole, part)


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "tree_mass", lambda *args: "reference")
    assert tree_mass(torch.zeros(1, 2), torch.ones(1, dtype=torch.int32)) == "reference"


BAD = {
    r"scores must be float32 \[B, C\]": {"scores": torch.zeros(1, 2).double()},
    r"nodes must be int32 \[S\]": {"nodes": torch.zeros(1)},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    inputs = {"scores": torch.zeros(1, 2), "nodes": torch.ones(1, dtype=torch.int32)} | change
    with pytest.raises(ValueError, match=message):
        tree_mass(**inputs)
