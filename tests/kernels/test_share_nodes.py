"""share_nodes: the kernel against the reference, which is compared with plain Python; and what select_nodes makes of
it."""

import pytest
import torch

from radar_kernels import Share, reference_tree, select_nodes, share_nodes
from tests.kernels.test_select_nodes import assert_same, make

BACKENDS = ["triton", "torch"]
SHAPES = {  # batch, k, levels, levels that are written, nodes in all, of one tree
    "two texts": (2, 4, 5, 5, 24, 20),
    "eight texts": (8, 10, 8, 7, 128, 60),
    "as many as there are": (3, 3, 3, 2, 64, 60),
    "the roots alone": (4, 3, 3, 3, 4, 8),
    "one text": (1, 5, 4, 4, 16, 60),
    "a tree's limit": (3, 6, 5, 5, 60, 12),
    "32 texts": (32, 4, 8, 6, 256, 60),
}


def by_hand(scores, active, total, most):
    """Candidates of all rows, best first, of equals the lower row and slot."""
    flat = [
        (-score, row, slot)
        for row, line in enumerate(scores.tolist())
        for slot, score in enumerate(line)
        if active[row] and score > -float("inf")
    ]
    counts = [1] * len(scores)
    for _, row, _ in sorted(flat)[: total - len(scores)]:
        counts[row] += 1
    counts = [min(count, most) for count in counts]
    nodes = [row * most + node for row, count in enumerate(counts) for node in range(count)]
    return counts, nodes + [-1] * (total - len(nodes))


def rows_of(shape, device, steps=None):
    batch, k, levels, written, total, most = shape
    inputs, _ = make(k=k, levels=levels, written=written, batch=batch, steps=steps, device=device)
    active = torch.rand(batch, device=device) < 0.8
    active[0] = True
    inputs[0][1:2] *= 3  # an unsure text
    return inputs, active, {"total": total, "most": most}


@pytest.mark.parametrize("steps", [None, 1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, steps, device):
    inputs, active, options = rows_of(shape, device, steps)
    got = share_nodes(inputs[0], active, **options, backend="triton")
    expected = reference_tree.share_nodes(inputs[0], active, **options)
    for name, a, b in zip(Share._fields, got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    counts, nodes = by_hand(inputs[0], active, **options)
    assert (expected.counts.tolist(), expected.nodes.tolist()) == (counts, nodes)
    assert expected.starts.tolist() == [sum(counts[:row]) for row in range(len(counts) + 1)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_select_nodes_takes_what_is_shared(backend, device):
    """Each tree is that of so many nodes alone, with padding behind."""
    inputs, active, options = rows_of(SHAPES["eight texts"], device, steps=40)
    counts = share_nodes(inputs[0], active, **options, backend=backend).counts
    how = {"tree_top_k": 10, "backend": backend}
    tree = select_nodes(*inputs, total_tokens=60, counts=counts, **how)
    assert_same(tree, reference_tree.select_nodes(*inputs, total_tokens=60, tree_top_k=10, counts=counts))
    assert len(set(counts.tolist())) > 3
    for row, count in enumerate(counts.tolist()):
        assert int(tree.valid[row].sum()) == count
        one = [tensor[row : row + 1] for tensor in inputs]
        if count > 1:
            alone = select_nodes(*one, total_tokens=count, **how)
            got = [part[row : row + 1, :count] for part in tree]
            assert_same([*got[:4], got[4][..., : alone.ancestors.shape[2]]], alone)
        padding = [part[row, count:] for part in tree]
        assert not (padding[0].any() | padding[1].any() | (padding[2] != 1).any() | padding[3].any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_share(backend, device):
    scores = torch.full((2, 9), -float("inf"), device=device)
    share = share_nodes(scores, torch.ones(2, dtype=torch.bool, device=device), total=6, most=4, backend=backend)
    assert (share.counts.tolist(), share.nodes.tolist()) == ([1, 1], [0, 4, -1, -1, -1, -1])


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "share_nodes", lambda *_, **options: options)
    flags = torch.ones(2, dtype=torch.bool)
    assert share_nodes(torch.zeros(2, 3), flags, total=4, most=4) == {"total": 4, "most": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 3, dtype=torch.float64)}, "scores must be float32"),
        ({"scores": torch.zeros(65, 3)}, "1 to 64 rows, got 65"),
        ({"active": torch.ones(3, dtype=torch.bool)}, r"active must be bool \[2\]"),
        ({"total": 1}, "total must be from 2"),
        ({"most": 1}, "most must be from 2 to 256, got 1"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    given = {"scores": torch.zeros(2, 3), "active": torch.ones(2, dtype=torch.bool), "total": 4, "most": 4}
    with pytest.raises(ValueError, match=f"share_nodes: .*{message}"):
        share_nodes(**given | change)
