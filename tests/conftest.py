"""Shared fixtures. Without a GPU kernels run in Triton's interpreter, to be chosen before triton is imported."""

import contextlib
import os
import platform
import random

if os.environ.get("PYTEST_XDIST_WORKER"):  # the processes share the cores; read when torch and numpy are imported
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

if platform.machine() == "x86_64":
    # NumPy multiplies in the interpreter. On some newer processors OpenBLAS adds a row up in an order that varies with
    # the number of rows, where our kernels promise one
    os.environ.setdefault("OPENBLAS_CORETYPE", "Sandybridge")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest


def _repair_interpreter() -> None:
    """Triton 3.6 calls int() on 1-element arrays, an error since numpy 2.4: `range(n)` fails in its interpreter."""
    import triton
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.6.") or np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    interpreter._patch_lang_tensor = patched


if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError):  # without triton the tests of the kernels are skipped
        _repair_interpreter()


TOGETHER = {
    "test_compile_skinny", "test_end_to_end", "test_lab_record", "test_serve_browser", "test_serve_cluster",
    "test_serve_fuzz", "test_show_browser",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose fixtures take long go to one process each (`--dist loadgroup`), which makes them once."""
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)
