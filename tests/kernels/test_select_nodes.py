"""select_nodes: the kernel against the reference, which tests/test_tree.py checks against a tree of plain Python."""

import pytest
import torch

from radar_kernels import VerifyTree, reference_tree, select_nodes

INF = float("inf")
BACKENDS = ["triton", "torch"]
SHAPES = {  # k, levels that the buffer has, levels that are written, nodes
    "RADAR's tree": {"k": 10, "levels": 16, "written": 7, "nodes": 60},
    "all levels": {"k": 10, "levels": 16, "written": 16, "nodes": 60},
    "the largest tree": {"k": 16, "levels": 16, "written": 16, "nodes": 256},
    "fewer candidates than nodes": {"k": 10, "levels": 16, "written": 1, "nodes": 60},
    "fewer slots than nodes": {"k": 2, "levels": 2, "written": 2, "nodes": 60},
    "one slot": {"k": 1, "levels": 1, "written": 1, "nodes": 2},
    "a chain": {"k": 1, "levels": 16, "written": 16, "nodes": 9},
    "one node": {"k": 4, "levels": 5, "written": 3, "nodes": 2},
    "65 nodes": {"k": 7, "levels": 9, "written": 9, "nodes": 65},
    "as many candidates as nodes": {"k": 3, "levels": 4, "written": 4, "nodes": 31},
}


def make(*, k=4, levels=5, written=5, nodes=12, batch=1, steps=None, device="cpu"):
    """Scores, tokens, parents, root of random trees; `steps` rounds the scores, which makes ties."""
    slots = k + (levels - 1) * k * k
    scores = torch.full((batch, slots), -INF)
    parents = torch.full((batch, slots), -1)
    tokens = torch.randint(0, 2**40, (batch, slots))
    losses = torch.rand(batch, slots) ** 2 * 3
    if steps is not None:
        losses = (losses * steps).round() / steps
    scores[:, :k] = -losses[:, :k]
    beam = scores[:, :k].topk(k).indices
    for level in range(1, min(written, levels)):
        first = k + (level - 1) * k * k
        new = slice(first, first + k * k)
        parents[:, new] = beam.repeat_interleave(k, 1)
        scores[:, new] = scores.gather(1, parents[:, new]) - losses[:, new]
        # as `topk_confidence` does it: the best k, of equals the lower ones
        beam = first + scores[:, new].sort(dim=1, descending=True, stable=True).indices[:, :k]
    inputs = scores, tokens, parents, torch.randint(0, 2**40, (batch,))
    return [tensor.to(device) for tensor in inputs], {"total_tokens": nodes, "tree_top_k": k}


def assert_same(got, expected):
    for name, a, b in zip(VerifyTree._fields, got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, batch, device):
    inputs, options = make(**shape, batch=batch, device=device)
    got = select_nodes(*inputs, **options, backend="triton")
    assert got.draft_tokens.shape == (batch, min(shape["nodes"], inputs[0].shape[1] + 1))
    assert_same(got, reference_tree.select_nodes(*inputs, **options))


@pytest.mark.parametrize("k", range(1, 17))
def test_every_width(k, device):
    for nodes in (2, 40, 256):
        inputs, options = make(k=k, levels=4, written=3, nodes=nodes, batch=2, device=device)
        assert_same(select_nodes(*inputs, **options, backend="triton"), reference_tree.select_nodes(*inputs, **options))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_ties_go_to_the_lower_slot(steps, device):
    """Rounded scores: many candidates tie at the bound, with steps=0 nearly all of them."""
    for written in (1, 3, 5):
        inputs, options = make(k=5, written=written, nodes=30, batch=2, steps=max(steps, 0.01), device=device)
        assert inputs[0].unique().numel() < 60
        assert_same(select_nodes(*inputs, **options, backend="triton"), reference_tree.select_nodes(*inputs, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_has_one_sign(backend, device):
    """-0.0 ties with 0.0, as in a sort: slots 0 to 2 win, whatever their signs."""
    inputs, _ = make(k=5, levels=1, device=device)
    inputs[0] = torch.tensor([[-0.0, -0.0, 0.0, 0.0, -1.0]], device=device)
    nodes = select_nodes(*inputs, total_tokens=4, tree_top_k=5, backend=backend)
    assert torch.equal(nodes.draft_tokens[:, 1:], inputs[1][:, :3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tree_by_hand(backend, device):
    """Two levels of two, one dead candidate among the chosen slots."""
    scores = torch.tensor([[-1.0, -2.0, -1.5, -INF, -2.5, -9.0]], device=device)
    tokens = torch.tensor([[10, 11, 20, 21, 22, 23]], device=device)
    parents = torch.tensor([[-1, -1, 0, 0, 1, 1]], device=device)
    root = torch.tensor([7], device=device)
    nodes = select_nodes(scores, tokens, parents, root, total_tokens=5, tree_top_k=2, backend=backend)
    assert nodes.draft_tokens.tolist() == [[7, 10, 11, 20, 22]]
    assert nodes.parents.tolist() == [[0, 0, 0, 1, 2]]
    assert nodes.depths.tolist() == [[0, 1, 1, 2, 2]]
    assert nodes.ancestors[..., 0].tolist() == [[0b1, 0b11, 0b101, 0b1011, 0b10101]]
    nodes = select_nodes(scores, tokens, parents, root, total_tokens=7, tree_top_k=2, backend=backend)
    assert nodes.valid.tolist() == [[True, True, True, True, False, True, True]]
    assert nodes.draft_tokens.tolist() == [[7, 10, 11, 20, 0, 22, 23]]
    assert nodes.depths.tolist() == [[0, 1, 1, 2, 1, 2, 2]]
    assert nodes.ancestors[0, 4, 0].tolist() == 0b10001


@pytest.mark.parametrize("field", range(4))
def test_a_planted_error_is_caught(field, device):
    """A change of any input changes the result: the comparison sees them all."""
    inputs, options = make(nodes=30, device=device)
    right = reference_tree.select_nodes(*inputs, **options)
    inputs[field] = inputs[field].flip(-1) if field < 3 else inputs[field] + 1
    with pytest.raises(AssertionError):
        assert_same(select_nodes(*inputs, **options, backend="triton"), right)


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "select_nodes", lambda *args, **options: "reference")
    inputs, options = make()
    assert select_nodes(*inputs, **options) == "reference"


def test_the_operator_is_registered_correctly(device):
    inputs, options = make(batch=2, device=device)
    torch.library.opcheck(torch.ops.radar_kernels.select_nodes.default, (*inputs, *options.values(), None))


BAD = {
    r"scores must be float32 \[B, C\]": {"scores": torch.zeros(1, 5).double()},
    "C from 1 to 4096": {"scores": torch.zeros(1, 4097)},
    "tokens must be int64": {"tokens": torch.zeros(1, 68)},
    r"parents must be int64 \[1, 68\]": {"parents": torch.zeros(1, 67).long()},
    "root_token must be int64": {"root_token": torch.zeros(2).long()},
    "total_tokens must be from 2 to 256, got 257": {"total_tokens": 257},
    "tree_top_k must be from 1 to 68": {"tree_top_k": 69},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    inputs, options = make()
    arguments = dict(zip(("scores", "tokens", "parents", "root_token"), inputs, strict=True)) | options
    with pytest.raises(ValueError, match=f"select_nodes: .*{message}"):
        select_nodes(**{**arguments, **change})
