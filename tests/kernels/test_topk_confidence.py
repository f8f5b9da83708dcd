"""topk_confidence: the reference against log_softmax and topk, the kernel against the reference, by gathered values."""

import pytest
import torch
from tolerances import assert_close, relative_error

from radar_kernels import TopkConfidence, reference, topk_confidence

INF = float("inf")
SHAPES = {
    "one row": {"rows": 1, "vocabulary": 1000, "k": 10},
    "a level": {"rows": 10, "vocabulary": 1000, "k": 10},
    "batch 3": {"batch": 3, "rows": 4, "vocabulary": 300, "k": 5},
    "k = 1": {"rows": 3, "vocabulary": 77, "k": 1},
    "k = 16": {"rows": 2, "vocabulary": 129, "k": 16},
    "k = V": {"rows": 2, "vocabulary": 7, "k": 7},
    "whole blocks": {"rows": 1, "vocabulary": 4096, "k": 3},
    "more rows than k": {"rows": 20, "vocabulary": 64, "k": 3},
}


def make(*, batch=1, rows=2, vocabulary=100, k=4, dtype=torch.float32, device="cpu"):
    logits = (torch.randn(batch, rows, vocabulary, device=device) * 3).to(dtype)
    parents = -5 * torch.rand(batch, rows, device=device)
    return logits, parents, k


def assert_same(got: TopkConfidence, logits, parents, k, d2t=None):
    """Exact about order and integers, tolerant about values; ties are settled by the lower index."""
    expected = reference.topk_confidence(logits, parents, k, d2t=d2t)
    for name in ("candidate_scores", "scores"):
        assert_close(getattr(got, name), getattr(expected, name), "topk_confidence", torch.float32)
        assert (getattr(got, name).diff() <= 0).logical_or(getattr(got, name)[..., 1:] == -INF).all(), (
            f"{name} not descending"
        )
    assert got.candidate_tokens.dtype == got.indices.dtype == torch.int64
    assert torch.equal(got.candidate_tokens, expected.candidate_tokens)
    flat = got.candidate_scores.flatten(1)
    assert torch.equal(flat.gather(1, got.indices), got.scores)
    assert got.indices.sort(-1).values.diff().gt(0).all(), "an index twice"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_reference_equals_the_chain_of_torch_ops(shape, device):
    logits, parents, k = make(**shape, device=device)
    out = reference.topk_confidence(logits, parents, k)
    log_probs = torch.log_softmax(logits.double(), -1)
    rows = log_probs.topk(k, -1)
    candidates = rows.values + parents[..., None]
    best = candidates.flatten(1).topk(k, -1)
    assert_close(out.candidate_scores, candidates, "topk_confidence", torch.float32)
    assert torch.equal(out.candidate_tokens, rows.indices)
    assert_close(out.scores, best.values, "topk_confidence", torch.float32)
    assert torch.equal(out.indices, best.indices)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, kernel_dtype, device):
    logits, parents, k = make(**shape, dtype=kernel_dtype, device=device)
    assert_same(topk_confidence(logits, parents, k, backend="triton"), logits, parents, k)


def test_bfloat16_logits(device):
    """No product, no rounding: bfloat16 is right in the interpreter too, and full of ties."""
    logits, parents, k = make(rows=3, vocabulary=700, k=10, dtype=torch.bfloat16, device=device)
    assert_same(topk_confidence(logits, parents, k, backend="triton"), logits, parents, k)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_d2t_offsets_and_strided_inputs(backend, device):
    logits, parents, k = make(batch=2, rows=3, vocabulary=150, device=device)
    d2t = torch.randint(0, 1000, (150,), device=device)
    wide = torch.randn(2, 3, 400, device=device)
    wide[:, :, 7:157] = logits
    spread = torch.stack((parents, parents * 0), -1)[..., 0]
    out = topk_confidence(wide[:, :, 7:157], spread, k, d2t=d2t, backend=backend)
    assert_same(out, logits, parents, k, d2t)
    plain = topk_confidence(logits, parents, k, backend=backend).candidate_tokens
    assert torch.equal(out.candidate_tokens, plain + d2t[plain])


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_dead_rows_come_last_and_poison_nothing(backend, device):
    logits, parents, k = make(rows=3, device=device)
    parents[0, 1] = -INF
    logits[0, 1] = float("nan")
    out = topk_confidence(logits, parents, k, backend=backend)
    assert (out.candidate_scores[0, 1] == -INF).all()
    assert out.candidate_tokens.ge(0).all()
    assert out.candidate_tokens.lt(100).all()
    alive = topk_confidence(logits[:, ::2], parents[:, ::2], k, backend=backend)
    torch.testing.assert_close(out.scores, alive.scores)
    assert not (out.indices // k == 1).any()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_all_rows_but_one_dead_as_at_the_first_level(backend, device):
    logits, parents, k = make(rows=4, k=8, device=device)
    parents[0, :] = -INF
    parents[0, 0] = 0
    out = topk_confidence(logits, parents, k, backend=backend)
    assert out.indices[0].tolist() == list(range(8))
    torch.testing.assert_close(out.scores, out.candidate_scores[:, 0])


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_masked_tokens(backend, device):
    """-inf logits: fewer possible tokens than k, and whole blocks without one."""
    logits, parents, k = make(rows=2, vocabulary=600, k=6, device=device)
    logits[:, 0, :590] = -INF
    logits[:, 1, 3:] = -INF
    out = topk_confidence(logits, parents, k, backend=backend)
    assert_same(out, logits, parents, k)
    assert not out.candidate_scores.isnan().any()
    assert out.candidate_scores[0, 1].isinf().tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_ties_go_to_the_lower_index(backend, device):
    logits = torch.zeros(1, 3, 500, device=device)
    out = topk_confidence(logits, torch.zeros(1, 3, device=device), 5, backend=backend)
    assert torch.equal(out.candidate_tokens, torch.arange(5, device=device).expand(1, 3, 5))
    assert out.indices.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_ties_between_blocks_go_to_the_lower_index(backend, dtype, device):
    """The kernel finds the block of tokens 130 and 131 first, because 130 is best; token 1 still comes before 131."""
    logits = torch.full((1, 1, 192), -9.0, dtype=dtype, device=device)
    logits[0, 0, [130, 131, 1]] = torch.tensor([5.0, 3.0, 3.0], dtype=dtype, device=device)
    out = topk_confidence(logits, torch.zeros(1, 1, device=device), 3, backend=backend)
    assert out.candidate_tokens.tolist() == [[[130, 1, 131]]]


def test_a_planted_error_is_caught(device):
    logits, parents, k = make(rows=3, device=device)
    right = topk_confidence(logits, parents, k, backend="triton")
    assert_same(right, logits, parents, k)
    wrong = [
        right._replace(candidate_scores=right.candidate_scores + 1e-4),
        right._replace(candidate_tokens=right.candidate_tokens.roll(1, -1)),
        right._replace(scores=right.scores.flip(-1)),
        right._replace(indices=right.indices.roll(1, -1)),
        right._replace(candidate_scores=torch.full_like(right.candidate_scores, float("nan"))),
    ]
    for result in wrong:
        with pytest.raises(AssertionError):
            assert_same(result, logits, parents, k)


def test_large_logits_do_not_overflow(device):
    logits, parents, k = make(rows=2, device=device)
    out = topk_confidence(logits * 1e4, parents, k, backend="triton")
    assert relative_error(out.scores, reference.topk_confidence(logits * 1e4, parents, k).scores) < 1e-6
    assert out.scores.isfinite().all()


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "topk_confidence", lambda *args, **options: "reference")
    assert topk_confidence(*make()) == "reference"


def test_the_operator_is_registered_correctly(device):
    torch.library.opcheck(torch.ops.radar_kernels.topk_confidence.default, (*make(device=device), None))


BAD = {
    "logits must be": {"logits": torch.zeros(2, 100)},
    "float16, bfloat16 or float32": {"logits": torch.zeros(1, 2, 100, dtype=torch.int64)},
    "parent_scores must be float32": {"parent_scores": torch.zeros(1, 2, dtype=torch.float16)},
    r"k must be from 1 to 16, got 17": {"k": 17},
    r"k must be from 1 to 3, got 4": {"logits": torch.zeros(1, 2, 3)},
    "1 to 256 rows": {"logits": torch.zeros(1, 257, 100), "parent_scores": torch.zeros(1, 257)},
    "d2t must be int64": {"d2t": torch.zeros(99, dtype=torch.int64)},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    arguments = dict(zip(("logits", "parent_scores", "k"), make(), strict=True))
    with pytest.raises(ValueError, match=f"topk_confidence: .*{message}"):
        topk_confidence(**{**arguments, **change})
