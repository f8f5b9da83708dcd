"""mass_stop: the kernel against the reference, which is compared with plain sums."""

import math

import pytest
import torch

from radar_kernels import mass_stop, reference

BACKENDS = ["triton", "torch"]
INF = math.inf


@pytest.mark.parametrize(("batch", "width"), [(1, 10), (3, 1), (5, 7), (2, 16)])
def test_kernel_equals_reference(batch, width, device):
    bounds = torch.tensor([0.0, 0.3, 0.5, INF], device=device)
    calls = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2)]
    stopped = 0
    for _ in range(6):
        wide = (torch.rand(batch, 2 * width, device=device) / width).log().sort(descending=True).values
        scores = wide[:, :width]
        got = mass_stop(scores, bounds, calls[0], backend="triton")
        assert torch.equal(got, reference.mass_stop(scores, bounds, calls[1]))
        assert got.dtype == torch.bool
        assert torch.equal(*calls)
        stopped += int(got.sum())
    assert batch <= stopped <= 5 * batch


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_at_calls_of_their_own_and_the_last_bound_stays(backend, device):
    scores = torch.tensor([[0.4, 0.2]], device=device).log().expand(4, -1)
    call = torch.tensor([0, 1, 2, 9], device=device)
    flags = mass_stop(scores, torch.tensor([0.59, 0.61, 0.5], device=device), call, backend=backend)
    assert flags.tolist() == [False, True, False, False]
    assert call.tolist() == [1, 2, 3, 10]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", [-INF, 0.0, math.nan, INF])
def test_0_never_stops_and_inf_always(score, backend, device):
    scores, call = torch.full((1, 3), score, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    bounds = torch.tensor([0.0, INF], device=device)
    assert [bool(mass_stop(scores, bounds, call, backend=backend)) for _ in range(3)] == [False, True, True]


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "mass_stop", lambda *args: "reference")
    assert mass_stop(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1).long()) == "reference"


BAD = {
    r"scores must be float32 \[B, k\]": {"scores": torch.zeros(1, 2).double()},
    r"bounds must be float32 \[C\]": {"bounds": torch.zeros(0)},
    r"call must be contiguous int64 \[1\]": {"call": torch.zeros(1)},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    given = {"scores": torch.zeros(1, 2), "bounds": torch.zeros(1), "call": torch.zeros(1).long()}
    with pytest.raises(ValueError, match=f"mass_stop: {message}"):
        mass_stop(**given | change)
