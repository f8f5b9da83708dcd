"""grow_tree: the references against torch's ops, the kernels against the references, by gathered values."""

import pytest
import torch
from tolerances import assert_close, relative_error
from tree_cases import level_of, make_logits, make_tree, one_level

from radar_kernels import TreeBuffers, grow_tree, reference, reference_tree

INF = float("inf")
BACKENDS = ["triton", "torch"]
SHAPES = {
    "RADAR's beam": {"k": 10, "calls": 2, "vocabulary": 1000},
    "two words of columns": {"k": 7, "calls": 12, "vocabulary": 60},
    "batch 3": {"batch": 3, "k": 3, "calls": 3},
    "k = 1": {"k": 1, "calls": 3, "vocabulary": 77},
    "k = 16": {"k": 16, "calls": 2, "vocabulary": 129},
    "k = V": {"k": 7, "calls": 2, "vocabulary": 7},
    "whole blocks": {"k": 3, "calls": 2, "vocabulary": 4096},
    "one call": {"k": 4, "calls": 1},
    "some of the beam": {"batch": 2, "k": 5, "calls": 4, "expanded": 2},
}


def assert_level(got, logits, parents, k, d2t=None):
    """Exact about order and integers, tolerant about values; ties are settled by the lower index."""
    expected = reference.topk_confidence(logits, parents, k, d2t=d2t)
    for name in ("candidate_scores", "scores"):
        assert_close(getattr(got, name), getattr(expected, name), "grow_tree", torch.float32)
        assert (getattr(got, name).diff() <= 0).logical_or(getattr(got, name)[..., 1:] == -INF).all(), (
            f"{name} not descending"
        )
    assert torch.equal(got.candidate_tokens, expected.candidate_tokens)
    flat = got.candidate_scores.flatten(1)
    assert torch.equal(flat.gather(1, got.indices), got.scores)
    assert got.indices.sort(-1).values.diff().gt(0).all(), "an index twice"


def clone(tree):
    return TreeBuffers(*(tensor.clone() for tensor in tree))


def assert_same(got, expected):
    for name, a, b in zip(TreeBuffers._fields, got, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("rows", [1, 4])
def test_the_reference_of_a_level_equals_the_chain_of_torch_ops(rows, device):
    logits, parents = 3 * torch.randn(3, rows, 300, device=device), -5 * torch.rand(3, rows, device=device)
    out = reference.topk_confidence(logits, parents, 5)
    log_probs = torch.log_softmax(logits.double(), -1)
    best_of_rows = log_probs.topk(5, -1)
    candidates = best_of_rows.values + parents[..., None]
    best = candidates.flatten(1).topk(5, -1)
    assert_close(out.candidate_scores, candidates, "grow_tree", torch.float32)
    assert torch.equal(out.candidate_tokens, best_of_rows.indices)
    assert_close(out.scores, best.values, "grow_tree", torch.float32)
    assert torch.equal(out.indices, best.indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # no product, no rounding
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, dtype, device):
    """The level within tolerances, and the tree exactly what the reference makes of that level."""
    tree = make_tree(**shape, device=device)
    twin = clone(tree)
    for call in range(shape["calls"]):
        logits = make_logits(tree, first=call == 0, **shape, dtype=dtype)
        parents = torch.zeros_like(logits[..., 0], dtype=torch.float32) if call == 0 else tree.beam_scores.clone()
        assert grow_tree(logits, tree, first=call == 0, backend="triton") is None
        level = level_of(tree, shape.get("expanded"))
        assert_level(level, logits, parents[:, : logits.shape[1]], shape["k"])
        reference_tree.add_level(level, twin, first=call == 0)
        assert_same(tree, twin)
        assert tree.calls.unique().tolist() == [call + 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_alive_stay_as_they_are(backend, device):
    tree = make_tree(batch=3, device=device)
    for call in range(3):
        logits = make_logits(tree, first=call == 0)
        before, all_grown = clone(tree), clone(tree)
        alive = torch.tensor([True, call == 0, call < 2], device=device)
        grow_tree(logits, all_grown, first=call == 0, backend=backend)
        grow_tree(logits, tree, first=call == 0, alive=None if call == 0 else alive, backend=backend)
        for row, grows in enumerate([True, True, True] if call == 0 else alive.tolist()):
            expected = all_grown if grows else before
            assert_same([part[row] for part in tree], [part[row] for part in expected])
    assert tree.calls.tolist() == [3, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_levels_by_hand(backend, device):
    def shares(*rows):
        return torch.tensor([rows], device=device).log()

    tree = make_tree(k=2, calls=2, device=device)
    d2t = torch.tensor([30, 30, 30], device=device)
    grow_tree(shares([0.5, 0.3, 0.2]), tree, first=True, d2t=d2t, backend=backend)
    torch.testing.assert_close(tree.scores.exp(), torch.tensor([[0.5, 0.3, 0, 0, 0, 0]], device=device))
    assert tree.beam_ancestors.tolist() == [[[0b01], [0b10]]]
    assert tree.beam_parents.tolist() == [[0, 0]]
    grow_tree(shares([0.2, 0.3, 0.5], [0.1, 0.8, 0.1]), tree, first=False, d2t=d2t, backend=backend)
    expected = torch.tensor([[0.5, 0.3, 0.25, 0.15, 0.24, 0.03]], device=device)
    torch.testing.assert_close(tree.scores.exp(), expected)
    assert tree.tokens.tolist() == [[30, 31, 32, 31, 31, 30]]
    assert tree.parents.tolist() == [[-1, -1, 0, 0, 1, 1]]
    assert tree.beam_tokens.tolist() == [[32, 31]]
    assert tree.beam_slots.tolist() == [[2, 4]]
    assert tree.beam_parents.tolist() == [[0, 1]]
    assert tree.beam_ancestors.tolist() == [[[0b0101], [0b1010]]]
    assert tree.calls.tolist() == [2]


def test_rows_of_a_batch_may_have_different_depths(device):
    tree = make_tree(batch=2, k=3, calls=4, device=device)
    twin = clone(tree)
    for first in (True, False, False):
        logits = make_logits(tree, first=first)
        if not first:
            tree.calls[1] = twin.calls[1] = 1  # the second row always writes level 2
        grow_tree(logits, tree, first=first, backend="triton")
        reference_tree.grow_tree(logits, twin, first=first)
    assert tree.calls.tolist() == [3, 2]
    for name in ("tokens", "parents", "beam_tokens", "beam_slots", "beam_parents", "beam_ancestors"):
        assert torch.equal(getattr(tree, name), getattr(twin, name)), name


def test_a_level_too_many_stays_inside_the_tree(device):
    tree = make_tree(batch=2, k=2, calls=2, device=device)
    for first in (True, False):
        grow_tree(make_logits(tree, first=first), tree, first=first, backend="triton")
    before = clone(tree)
    tree.calls[1] = 1  # its slots 2 to 5 are written again; the first row's would be behind its six
    grow_tree(make_logits(tree, first=False), tree, first=False, backend="triton")
    for name in ("scores", "tokens", "parents"):
        assert torch.equal(getattr(tree, name)[0], getattr(before, name)[0])
        assert torch.equal(getattr(tree, name)[1, :2], getattr(before, name)[1, :2])
    assert tree.beam_tokens.lt(100).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_d2t_offsets_and_strided_logits(backend, device):
    logits, parents = 3 * torch.randn(2, 3, 150, device=device), -torch.rand(2, 3, device=device)
    d2t = torch.randint(0, 1000, (150,), device=device)
    wide = torch.randn(2, 3, 400, device=device)
    wide[:, :, 7:157] = logits
    tree = make_tree(batch=2, k=3, calls=2, device=device)
    out = one_level(wide[:, :, 7:157], parents, 3, d2t=d2t, backend=backend)
    assert_level(out, logits, parents, 3, d2t)
    plain = one_level(logits, parents, 3, backend=backend).candidate_tokens
    assert torch.equal(out.candidate_tokens, plain + d2t[plain])
    grow_tree(logits.mT.contiguous().mT[:, :1], tree, first=True, d2t=d2t, backend=backend)
    assert torch.equal(tree.beam_tokens, tree.tokens.gather(1, tree.beam_slots))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_rows_come_last_and_poison_nothing(backend, device):
    logits, parents = torch.randn(1, 4, 100, device=device), -torch.rand(1, 4, device=device)
    parents[0, 1] = -INF
    logits[0, 1] = torch.nan
    out = one_level(logits, parents, 4, backend=backend)
    assert (out.candidate_scores[0, 1] == -INF).all()
    assert out.candidate_tokens.ge(0).all()
    assert out.candidate_tokens.lt(100).all()
    alive = reference.topk_confidence(logits[:, [0, 2, 3]], parents[:, [0, 2, 3]], 4)
    torch.testing.assert_close(out.scores, alive.scores)
    assert not (out.indices // 4 == 1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_rows_but_one_dead(backend, device):
    parents = torch.full((1, 8), -INF, device=device)
    parents[0, 0] = 0
    out = one_level(torch.randn(1, 8, 100, device=device), parents, 8, backend=backend)
    assert out.indices[0].tolist() == list(range(8))
    torch.testing.assert_close(out.scores, out.candidate_scores[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens(backend, device):
    """-inf logits: fewer possible tokens than k, and whole blocks without one."""
    logits, parents = torch.randn(1, 6, 600, device=device), -torch.rand(1, 6, device=device)
    logits[:, 0, :590] = -INF
    logits[:, 1, 3:] = -INF
    out = one_level(logits, parents, 6, backend=backend)
    assert_level(out, logits, parents, 6)
    assert not out.candidate_scores.isnan().any()
    assert out.candidate_scores[0, 1].isinf().tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_index(backend, device):
    out = one_level(torch.zeros(1, 5, 500, device=device), torch.zeros(1, 5, device=device), 5, backend=backend)
    assert torch.equal(out.candidate_tokens, torch.arange(5, device=device).expand(1, 5, 5))
    assert out.indices.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_between_blocks_go_to_the_lower_index(backend, dtype, device):
    """The kernel finds the block of tokens 130 and 131 first, because 130 is best; token 1 still comes before 131."""
    logits = torch.full((1, 1, 192), -9.0, dtype=dtype, device=device)
    logits[0, 0, [130, 131, 1]] = torch.tensor([5.0, 3.0, 3.0], dtype=dtype, device=device)
    assert one_level(logits, None, 3, backend=backend).candidate_tokens.tolist() == [[[130, 1, 131]]]


def test_a_planted_error_is_caught(device):
    logits, parents = torch.randn(1, 4, 100, device=device), -torch.rand(1, 4, device=device)
    right = one_level(logits, parents, 4)
    assert_level(right, logits, parents, 4)
    wrong = [
        right._replace(candidate_scores=right.candidate_scores + 1e-4),
        right._replace(candidate_tokens=right.candidate_tokens.roll(1, -1)),
        right._replace(scores=right.scores.flip(-1)),
        right._replace(indices=right.indices.roll(1, -1)),
        right._replace(candidate_scores=torch.full_like(right.candidate_scores, torch.nan)),
    ]
    for result in wrong:
        with pytest.raises(AssertionError):
            assert_level(result, logits, parents, 4)


def test_large_logits_do_not_overflow(device):
    logits, parents = 3e4 * torch.randn(1, 4, 100, device=device), -torch.rand(1, 4, device=device)
    out = one_level(logits, parents, 4)
    assert relative_error(out.scores, reference.topk_confidence(logits, parents, 4).scores) < 1e-6
    assert out.scores.isfinite().all()


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "grow_tree", lambda *args, **options: "reference")
    tree = make_tree()
    assert grow_tree(make_logits(tree, first=True), tree, first=True) == "reference"


def test_the_operator_is_registered_correctly(device):
    tree = make_tree(device=device)
    grow_tree(make_logits(tree, first=True), tree, first=True)
    logits = make_logits(tree, first=False)
    torch.library.opcheck(torch.ops.radar_kernels.grow_tree.default, (logits, *tree, False, None, None))


BAD = {
    r"scores must be \[B, C\]": {"scores": lambda d: torch.zeros(3, device=d)},
    r"logits must be .* \[1, 1, V\]": {"logits": lambda d: torch.zeros(1, 2, 100, device=d)},
    "logits must be float16, bfloat16 or float32": {"logits": lambda d: torch.zeros(1, 1, 100, device=d).long()},
    r"tokens must be torch.int64 \[1, 36\]": {"tokens": lambda d: torch.zeros(1, 4, device=d).long()},
    "calls must be torch.int64": {"calls": lambda d: torch.zeros(1, device=d)},
    r"beam_parents must be torch.int64 \[1, 4\]": {"beam_parents": lambda d: torch.zeros(1, 4, device=d)},
    "tokens is written in place and must be contiguous": {
        "tokens": lambda d: torch.zeros(1, 72, device=d).long()[:, ::2]
    },
    "the beam must hold 1 to 16 nodes, got 17": {"beam_ancestors": lambda d: torch.zeros(1, 17, 1, device=d).long()},
    "the beam must hold 1 to 3 nodes, got 4": {"logits": lambda d: torch.zeros(1, 1, 3, device=d)},
    "d2t must be torch.int64": {"d2t": lambda d: torch.zeros(99, device=d).long()},
    "alive must be torch.bool": {"alive": lambda d: torch.ones(1, device=d)},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change, device):
    change = {name: make(device) for name, make in change.items()}
    tree = make_tree(device=device)
    logits = change.pop("logits", make_logits(tree, first=True))
    tree = tree._replace(**{name: change.pop(name) for name in TreeBuffers._fields if name in change})
    with pytest.raises(ValueError, match=f"grow_tree: {message}"):
        grow_tree(logits, tree, first=True, **change, backend="triton")
