"""draft_rows: the kernel against the reference, whose norms are those of rms_norm."""

import pytest
import torch

from radar_kernels import Beam, DraftRows, draft_rows, reference_layer, rms_norm

BACKENDS = ["triton", "torch"]
SHAPES = [(1, 1, 64), (3, 4, 96), (2, 17, 33), (1, 10, 1000)]


def make(batch, nodes, size, *, beam, dtype=torch.float32, device="cpu"):
    def integers(high, *shape):
        return torch.randint(1, high, shape, device=device)

    def numbers(*shape):
        return (3 * torch.randn(shape, device=device)).to(dtype)

    tokens = integers(13, batch, 2 * nodes)[:, :nodes]  # rows apart
    tokens[0, 0] = -1
    width = nodes + 3 if beam else nodes  # a beam of which some are expanded
    wide = torch.full((batch, width, size + 8), float("nan"), device=device, dtype=dtype)
    hidden = wide[..., 4:-4]
    hidden.copy_(numbers(batch, width, size))
    parents = integers(width + 1, batch, width) - 1
    weights = (numbers(size), numbers(size))
    of = Beam(parents, integers(9, batch)) if beam else None
    return (tokens, numbers(13, size), hidden, integers(99, batch), weights, 1e-5), {"beam": of}


@pytest.mark.parametrize("beam", [False, True], ids=["pairs", "a beam"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_reference(shape, beam, kernel_dtype, device):
    arguments, options = make(*shape, beam=beam, dtype=kernel_dtype, device=device)
    got = draft_rows(*arguments, **options, backend="triton")
    expected = reference_layer.draft_rows(*arguments, **options)
    for name, a, b in zip(DraftRows._fields, got, expected, strict=True):
        if name != "normed":
            assert torch.equal(a, b), name
    tokens, table, _, _, weights, eps = arguments
    halves = table[tokens.clamp(min=0)], expected.states
    normed = [rms_norm(half, w, eps, backend="triton") for half, w in zip(halves, weights, strict=True)]
    assert torch.equal(got.normed, torch.cat(normed, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_rows_stand(backend, device):
    """Pairs follow the committed ones; a beam's rows share a position, and each level has columns of its own, also for
    the nodes that are not expanded."""
    arguments, options = make(2, 3, 8, beam=True, device=device)
    length, calls = (torch.tensor(x, device=device) for x in ([20, 7], [1, 4]))
    arguments = *arguments[:3], length, *arguments[4:]
    pairs = draft_rows(*arguments[:2], arguments[2][:, :3], *arguments[3:], backend=backend)
    assert (pairs.positions.tolist(), pairs.start.tolist()) == ([[20, 21, 22], [7, 8, 9]], [20, 7])
    assert torch.equal(pairs.states, arguments[2][:, :3])
    beam = draft_rows(*arguments, beam=Beam(options["beam"].parents, calls), backend=backend)
    assert (beam.positions.tolist(), beam.start.tolist()) == ([3 * [20], 3 * [10]], [20, 7 + 3 * 6])


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_layer, "draft_rows", lambda *args, **options: "reference")
    arguments, options = make(1, 2, 8, beam=False)
    assert draft_rows(*arguments, **options) == "reference"


BAD = {
    r"tokens must be \[B, N\]": {"tokens": torch.zeros(2).long()},
    r"hidden must be \[1, 2, 8\]": {"hidden": torch.zeros(1, 3, 8)},
    "share one float dtype": {"hidden": torch.zeros(1, 2, 8).half()},
    r"weights must be \[8\]": {"weights": (torch.ones(8), torch.ones(9))},
    r"length must be int64 \[1\]": {"length": torch.zeros(1)},
    r"parents must be int64 \[1, 2\]": {"beam": Beam(torch.zeros(1, 2), torch.ones(1).long())},
    r"hidden must be \[1, R, 8\]": {
        "hidden": torch.zeros(1, 8),
        "beam": Beam(torch.zeros(1, 3).long(), torch.ones(1).long()),
    },
    "a beam has 1 nodes, got 2 tokens": {
        "hidden": torch.zeros(1, 1, 8),
        "beam": Beam(torch.zeros(1, 1).long(), torch.ones(1).long()),
    },
    r"calls must be int64 \[1\]": {"beam": Beam(torch.zeros(1, 2).long(), torch.ones(2).long())},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    names = "tokens", "table", "hidden", "length", "weights", "eps"
    arguments, _ = make(1, 2, 8, beam=False)
    with pytest.raises(ValueError, match=f"draft_rows: .*{message}"):
        draft_rows(**dict(zip(names, arguments, strict=True)) | change)
