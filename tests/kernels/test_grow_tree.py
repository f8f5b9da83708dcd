"""grow_tree: the kernel against the reference over whole rounds; tests/test_tree.py has the reference's own check."""

import pytest
import torch

from radar_kernels import TopkConfidence, TreeBuffers, grow_tree, reference_tree

BACKENDS = ["triton", "torch"]
SHAPES = {
    "RADAR's tree": {"k": 10, "calls": 16, "hidden": 96},
    "batch 3": {"batch": 3, "k": 3, "calls": 4},
    "k = 1": {"k": 1, "calls": 5},
    "k = 16": {"batch": 2, "k": 16, "calls": 6},
    "one call": {"k": 4, "calls": 1},
    "two blocks of the hidden state": {"k": 2, "calls": 3, "hidden": 1100},
}


def make_tree(*, batch=1, k=4, calls=3, hidden=20, dtype=torch.float32, device="cpu"):
    """A tree that still holds what an earlier round left, all of it wrong for this one."""
    slots, words = k + (calls - 1) * k * k, max(1, -(-(calls - 1) * k // 64))

    def left_over(*shape):
        return torch.randint(0, 2**62, shape, device=device)

    return TreeBuffers(
        scores=torch.full((batch, slots), 7.0, device=device),
        tokens=left_over(batch, slots),
        parents=left_over(batch, slots),
        beam_scores=torch.full((batch, k), torch.nan, device=device),
        beam_tokens=left_over(batch, k),
        beam_slots=left_over(batch, k),
        beam_ancestors=left_over(batch, k, words),
        calls=left_over(batch),
        beam_hidden=torch.full((batch, k, hidden), torch.nan, dtype=dtype, device=device),
    )


def make_level(tree, *, first, dtype=torch.float32, device="cpu"):
    (batch, k, _), hidden = tree.beam_ancestors.shape, tree.beam_hidden.shape[2]
    rows = 1 if first else k
    scores = -5 * torch.rand(batch, rows, k, device=device)
    best = scores.flatten(1).topk(k)
    tokens = torch.randint(0, 2**40, (batch, rows, k), device=device)
    return (
        TopkConfidence(scores, tokens, best.values, best.indices),
        torch.randn(batch, rows, hidden, device=device).to(dtype),
    )


def clone(tree):
    return TreeBuffers(*(tensor.clone() for tensor in tree))


def assert_same(got, expected):
    for name, a, b in zip(TreeBuffers._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, kernel_dtype, device):
    tree = make_tree(**shape, dtype=kernel_dtype, device=device)
    twin = clone(tree)
    for call in range(shape["calls"]):
        level, hidden = make_level(tree, first=call == 0, dtype=kernel_dtype, device=device)
        assert grow_tree(level, hidden, tree, first=call == 0, backend="triton") is None
        reference_tree.grow_tree(level, hidden, twin, first=call == 0)
        assert_same(tree, twin)
        assert tree.calls.unique().tolist() == [call + 1]
    assert not tree.beam_hidden.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_alive_stay_as_they_are(backend, device):
    shape = {"batch": 3, "k": 4, "calls": 3, "hidden": 70}
    tree = make_tree(**shape, device=device)
    for call in range(3):
        level, hidden = make_level(tree, first=call == 0, device=device)
        before, all_grown = clone(tree), clone(tree)
        alive = torch.tensor([True, call == 0, call < 2], device=device)
        reference_tree.grow_tree(level, hidden, all_grown, first=call == 0)
        grow_tree(level, hidden, tree, first=call == 0, alive=None if call == 0 else alive, backend=backend)
        for row, grows in enumerate([True, True, True] if call == 0 else alive.tolist()):
            expected = all_grown if grows else before
            assert_same([part[row] for part in tree], [part[row] for part in expected])
    assert tree.calls.tolist() == [3, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_levels_by_hand(backend, device):
    def tensor(*values):
        return torch.tensor([values], device=device)

    tree = make_tree(k=2, calls=2, hidden=1, device=device)
    level = TopkConfidence(tensor([-1.0, -2.0]), tensor([30, 31]), tensor(-1.0, -2.0), tensor(0, 1))
    grow_tree(level, tensor([9.0]), tree, first=True, backend=backend)
    assert tree.scores.tolist() == [[-1, -2] + 4 * [-torch.inf]]
    assert tree.beam_ancestors.tolist() == [[[0b01], [0b10]]]
    assert tree.beam_hidden.tolist() == [[[9], [9]]]
    level = TopkConfidence(
        tensor([-1.5, -6.0], [-2.1, -2.2]), tensor([40, 41], [42, 43]), tensor(-1.5, -2.1), tensor(0, 2)
    )
    grow_tree(level, tensor([5.0], [6.0]), tree, first=False, backend=backend)
    expected = [-1.0, -2.0, -1.5, -6.0, -2.1, -2.2]
    assert torch.equal(tree.scores, tensor(*expected))
    assert tree.tokens.tolist() == [[30, 31, 40, 41, 42, 43]]
    assert tree.parents.tolist() == [[-1, -1, 0, 0, 1, 1]]
    assert tree.beam_tokens.tolist() == [[40, 42]]
    assert tree.beam_slots.tolist() == [[2, 4]]
    assert tree.beam_ancestors.tolist() == [[[0b0101], [0b1010]]]
    assert tree.beam_hidden.tolist() == [[[5], [6]]]
    assert tree.calls.tolist() == [2]


def test_rows_of_a_batch_may_have_different_depths(device):
    tree = make_tree(batch=2, k=3, calls=4, device=device)
    twin = clone(tree)
    for first in (True, False, False):
        level, hidden = make_level(tree, first=first, device=device)
        if not first:
            tree.calls[1] = twin.calls[1] = 1  # the second row always writes level 2
        grow_tree(level, hidden, tree, first=first, backend="triton")
        reference_tree.grow_tree(level, hidden, twin, first=first)
    assert tree.calls.tolist() == [3, 2]
    assert_same(tree, twin)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_of_any_strides(backend, device):
    tree = make_tree(batch=2, device=device)
    twin = clone(tree)
    for first in (True, False):
        level, hidden = make_level(tree, first=first, device=device)
        spread = torch.stack((hidden, hidden + 1), 1 if first else -1)
        spread = spread[:, 0] if first else spread[..., 0]
        grow_tree(level, spread, tree, first=first, backend=backend)
        reference_tree.grow_tree(level, hidden, twin, first=first)
    assert_same(tree, twin)


def test_a_level_too_many_stays_inside_the_tree(device):
    tree = make_tree(batch=2, k=2, calls=2, device=device)
    for first in (True, False):
        grow_tree(*make_level(tree, first=first, device=device), tree, first=first, backend="triton")
    before = clone(tree)
    tree.calls[1] = 1  # its slots 2 to 5 are written again; the first row's would be behind its six
    grow_tree(*make_level(tree, first=False, device=device), tree, first=False, backend="triton")
    for name in ("scores", "tokens", "parents"):
        assert torch.equal(getattr(tree, name)[0], getattr(before, name)[0])
        assert torch.equal(getattr(tree, name)[1, :2], getattr(before, name)[1, :2])


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "grow_tree", lambda *args, **options: "reference")
    tree = make_tree()
    assert grow_tree(*make_level(tree, first=True), tree, first=True) == "reference"


def test_the_operator_is_registered_correctly(device):
    tree = make_tree(device=device)
    grow_tree(*make_level(tree, first=True, device=device), tree, first=True)
    level, hidden = make_level(tree, first=False, device=device)
    torch.library.opcheck(torch.ops.radar_kernels.grow_tree.default, (*level, hidden, *tree, None, False))


BAD = {
    r"scores must be \[B, C\]": {"scores": lambda d: torch.zeros(3, device=d)},
    "candidate_scores must be torch.float32": {"candidate_scores": lambda d: torch.zeros(1, 1, 4, device=d).double()},
    r"candidate_tokens must be torch.int64 \[1, 1, 4\]": {
        "candidate_tokens": lambda d: torch.zeros(1, 4, 4, device=d).long()
    },
    "hidden must be torch.float32": {"hidden": lambda d: torch.zeros(1, 1, 20, device=d).half()},
    "calls must be torch.int64": {"calls": lambda d: torch.zeros(1, device=d)},
    r"beam_hidden must be .* \[1, 4, 20\]": {"beam_hidden": lambda d: torch.zeros(1, 4, 21, device=d)},
    "tokens is written in place and must be contiguous": {
        "tokens": lambda d: torch.zeros(1, 72, device=d).long()[:, ::2]
    },
    "the beam must hold 1 to 16 nodes, got 17": {"beam_ancestors": lambda d: torch.zeros(1, 17, 1, device=d).long()},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change, device):
    change = {name: make(device) for name, make in change.items()}
    tree = make_tree(device=device)
    level, hidden = make_level(tree, first=True, device=device)
    level = level._replace(**{name: x for name, x in change.items() if name in TopkConfidence._fields[:2]})
    tree = tree._replace(**{name: x for name, x in change.items() if name in TreeBuffers._fields})
    with pytest.raises(ValueError, match=f"grow_tree: {message}"):
        grow_tree(level, change.get("hidden", hidden), tree, first=True, backend="triton")
