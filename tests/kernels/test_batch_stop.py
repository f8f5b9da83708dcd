"""batch_stop: the kernel against the reference, which is compared with counting."""

import pytest
import torch

from radar_kernels import batch_stop, reference

BACKENDS = ["triton", "torch"]


def flags(rows, chance, device):
    return torch.rand(rows, device=device) < chance


@pytest.mark.parametrize("rows", [2, 5, 32])
def test_kernel_equals_reference(rows, device):
    ended = 0
    for few in (1, 2, 3, 100):
        for chance in (0.1, 0.5, 0.9):
            stop, alive, active = flags(rows, chance, device), flags(rows, 0.7, device), flags(rows, 0.8, device)
            alive &= active
            both = [alive.clone(), alive.clone()]
            got = batch_stop(stop, both[0], active, few=few, backend="triton")
            assert torch.equal(got, reference.batch_stop(stop, both[1], active, few=few))
            assert torch.equal(*both)
            ended += int(got.all())
    assert 0 < ended < 12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("live", "goes_on"), [(3, True), (2, False), (0, False)])
def test_few_rows_are_not_worth_a_call(backend, live, goes_on, device):
    """Of 8 texts 3 are one in 3, in 10 rows."""
    active = torch.arange(10, device=device) < 8
    alive, stop = active.clone(), torch.arange(10, device=device) >= live
    stopped = batch_stop(stop, alive, active, few=3, backend=backend)
    assert alive.tolist() == [goes_on and row < live for row in range(10)]
    assert stopped.tolist() == (~alive).tolist()


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "batch_stop", lambda *args, **_: "reference")
    assert batch_stop(*[torch.zeros(2).bool()] * 3, few=1) == "reference"


@pytest.mark.parametrize("change", [{"stop": torch.zeros(2, 2).bool()}, {"alive": torch.zeros(3).bool()}])
def test_errors_say_what_was_expected(change):
    given = {name: torch.zeros(2).bool() for name in ("stop", "alive", "active")}
    with pytest.raises(ValueError, match=r"batch_stop: (alive|stop) must be contiguous bool \[2\]"):
        batch_stop(**given | change, few=1)
    with pytest.raises(ValueError, match="active must be contiguous bool"):
        batch_stop(**given | {"active": torch.zeros(2)}, few=1)
