"""Every kernel test runs with torch.empty poisoned: an output that a kernel does not write is NaN, -1 or True.

In the interpreter a kernel's arguments end where memory ends, too (guard.py).
"""

import os

import pytest
import torch

pytest.importorskip("triton")

KERNEL_DTYPES = [torch.float32, torch.float16]
if os.environ.get("TRITON_INTERPRET") != "1":
    KERNEL_DTYPES.append(torch.bfloat16)  # the interpreter computes bfloat16 dot products silently wrong


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_dtype" in metafunc.fixturenames:
        widens = getattr(metafunc.module, "LOADS_ARE_WIDENED", False)  # to the interpreter all types are then the same
        dtypes = KERNEL_DTYPES[:1] if widens and os.environ.get("TRITON_INTERPRET") == "1" else KERNEL_DTYPES
        metafunc.parametrize("kernel_dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(make):
        def wrapper(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.dtype.is_floating_point else -1)

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


if os.environ.get("TRITON_INTERPRET") == "1":
    from guard import guarded_launch

    from radar_kernels._launch import Plan

    @pytest.fixture(autouse=True)
    def _guard_memory(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Plan, "launch", guarded_launch)
