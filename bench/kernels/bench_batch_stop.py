"""A batch's decision against comparisons and sums."""

import pytest
import torch

from bench.conftest import IMPLEMENTATIONS, implementation_of
from radar_kernels import batch_stop, reference


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_stop(implementation, device, bench_kernel):
    stop, active = torch.arange(8, device=device) < 3, torch.ones(8, dtype=torch.bool, device=device)
    call = implementation_of(implementation, batch_stop, reference.batch_stop)
    assert call(stop, active.clone(), active, few=3).tolist() == stop.tolist()
    bench_kernel(lambda alive: call(stop, alive, active, few=3), [(active.clone(),)], bytes_moved=4 * stop.nbytes)
