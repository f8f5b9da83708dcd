"""A threshold's decision against exp, sum, gather and comparisons."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, implementation_of
from radar_kernels import mass_stop, reference


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mass_stop(implementation, device, bench_kernel):
    scores, bounds = torch.randn(1, 10, device=device) - 3, torch.tensor([0.0, 0.2, 0.4], device=device)
    call = implementation_of(implementation, mass_stop, reference.mass_stop)
    calls = [torch.full((1,), i, device=device) for i in range(4)]
    found = [call(scores, bounds, count.clone()) for count in calls]
    assert torch.equal(torch.cat(found), torch.cat([reference.mass_stop(scores, bounds, count) for count in calls]))
    bench_kernel(call, [(scores, bounds, count) for count in calls], bytes_moved=scores.nbytes)
