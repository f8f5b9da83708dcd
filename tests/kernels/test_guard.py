"""The guard itself: a kernel that reads or writes one element too far dies, one that does not is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guard import guarded_launch
from tree_cases import one_level

from radar_kernels._launch import Plan, jit, tl

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter's memory only")
COUNT = 100


@jit
def copy_kernel(source, target, READ: tl.constexpr, WRITTEN: tl.constexpr):
    i = tl.arange(0, 128)
    tl.store(target + i, tl.load(source + i, mask=i < READ, other=0.0), mask=i < WRITTEN)


def copy(read, written):
    source, target = torch.arange(float(COUNT)), torch.zeros(COUNT)
    plan = Plan((1,), {"READ": read, "WRITTEN": written}, {})
    guarded_launch(plan, copy_kernel, source, target)
    return source, target


def test_results_come_back():
    source, target = copy(COUNT, COUNT - 1)
    assert torch.equal(target[:-1], source[:-1])
    assert target[-1] == 0


def test_two_arguments_of_one_memory_stay_one():
    both = torch.arange(8.0)
    guarded_launch(Plan((1,), {"READ": 3, "WRITTEN": 3}, {}), copy_kernel, both[:3], both[4:])
    assert both.tolist() == [0, 1, 2, 3, 0, 1, 2, 7]


@pytest.mark.parametrize(("read", "written"), [(COUNT + 1, COUNT), (COUNT, COUNT + 1)], ids=["reading", "writing"])
def test_one_element_too_far_is_fatal(read, written):
    here = Path(__file__).parent
    run = {"env": {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}, "capture_output": True}
    script = f"from test_guard import copy; copy({read}, {written})"
    died = subprocess.run([sys.executable, "-c", script], check=False, **run)
    assert died.returncode in (-signal.SIGSEGV, -signal.SIGBUS), died.stderr.decode()[-1000:]


def test_every_kernel_test_is_guarded():
    assert Plan.launch is guarded_launch
    assert one_level(torch.randn(1, 3, 33), torch.zeros(1, 3), 3).scores.isfinite().all()
