"""compile_ahead: every kernel of some work is compiled once, none runs, and what cannot be compiled says so later."""

import inspect
import threading
import time

import pytest
import torch

pytest.importorskip("triton")

from radar_kernels import compile_ahead as module
from radar_kernels._launch import AsyncCompileMode, Plan

if AsyncCompileMode is None:
    pytest.skip("this Triton compiles nothing in the background", allow_module_level=True)

from triton.runtime._async_compile import active_mode

GPU = torch.device("cuda", 0)
PLAN = Plan((1,), {"BLOCK": 64}, {"num_warps": 1})


class Kernel:
    """As Triton's: compiled for each kind of arguments once, at a launch or by `warmup`, by the mode that is active."""

    def __init__(self, error=None, seconds=0.0):
        self.error, self.seconds = error, seconds
        self.compiled, self.launched, self.loaded, self.threads = {}, [], [], set()

    def _compile(self, key):
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return Compiled(self, key)

    def warmup(self, *arguments, grid, **constants):
        key = f"{id(self)} {[a.dtype if isinstance(a, torch.Tensor) else a == 1 for a in arguments]} {constants}"
        if key in self.compiled:
            return self.compiled[key]
        ends = (lambda kernel: self.compiled.update({key: kernel}), lambda future: None)
        ends = ends[: len(inspect.signature(active_mode.get().submit).parameters) - 2]  # Triton 3.6 has but one
        return active_mode.get().submit(key, lambda: self._compile(key), *ends)

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self._compile(None)
            self.launched.append(arguments)

        return launch


class Compiled:
    def __init__(self, kernel, key):
        self._kernel, self._key = kernel, key

    loading = threading.Lock()

    def _init_handles(self):
        alone = self.loading.acquire(blocking=False)
        time.sleep(0.001)
        self._kernel.loaded.append(self._key if alone else "beside another one")
        if alone:
            self.loading.release()


@pytest.fixture(autouse=True)
def _no_device(monkeypatch):
    monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_each_kind_of_launch_is_compiled_and_loaded_once_and_nothing_runs():
    kernel, other, told = Kernel(), Kernel(), []

    def work():
        for rows in (1, 2, 3, 1):
            PLAN.launch(kernel, torch.empty(rows), rows)
        PLAN._replace(constants={"BLOCK": 128}).launch(kernel, torch.empty(1), 1)
        PLAN.launch(other, torch.empty(1, dtype=torch.int64))
        assert not kernel.threads  # beside Python that compiles, this would crawl

    module.compile_ahead(work, GPU, lambda *counts: told.append(counts))
    assert len(kernel.compiled) == len(kernel.loaded) == 3
    assert len(other.compiled) == 1
    assert not kernel.launched
    assert threading.get_ident() not in kernel.threads
    assert told == [(done, 4) for done in range(5)]
    PLAN.launch(kernel, torch.empty(1), 1)
    assert len(kernel.launched) == 1
    told.clear()
    module.compile_ahead(work, GPU, lambda *counts: told.append(counts))
    assert told == [(0, 0)]  # all of it is there


def test_kernels_are_compiled_side_by_side():
    kernels = [Kernel(seconds=0.2) for _ in range(5)]
    module.compile_ahead(lambda: [PLAN.launch(kernel) for kernel in kernels], GPU)
    assert len(set.union(*(kernel.threads for kernel in kernels))) > 1


def test_kernels_are_loaded_one_by_one():
    kernels = [Kernel() for _ in range(40)]
    module.compile_ahead(lambda: [PLAN.launch(kernel) for kernel in kernels], GPU)
    assert [kernel.loaded for kernel in kernels] == [list(kernel.compiled) for kernel in kernels]


def test_what_kernels_would_have_written_is_zero(monkeypatch):
    found = []

    def work():
        ids = torch.empty(3, 5, dtype=torch.int64)
        found.append(torch.cat([ids, torch.empty_like(ids), ids.new_empty(3, 5)]))
        scores = torch.rand(1, 4, 16)
        found.append(torch.ops.radar_kernels.skinny_linear(scores, torch.ones(16, 16), None, None))
        found.append(scores)

    module.compile_ahead(work, GPU)
    assert [bool(one.any()) for one in found] == [False, False, True]


def test_what_cannot_be_compiled_says_so_at_its_launch():
    good, bad = Kernel(), Kernel(error=ValueError("no such instruction"))

    def work():
        PLAN.launch(bad)
        PLAN.launch(good)

    module.compile_ahead(work, GPU)
    assert len(good.compiled) == 1
    assert not bad.compiled
    with pytest.raises(ValueError, match="no such instruction"):
        PLAN.launch(bad)


def test_work_that_fails_fails_when_it_is_done_in_earnest():
    kernel = Kernel()

    def work():
        PLAN.launch(kernel)
        raise RuntimeError("a hook of the model's")

    module.compile_ahead(work, GPU)
    assert len(kernel.compiled) == 1


def test_an_interrupt_ends_it():
    kernels = [Kernel(seconds=0.05) for _ in range(60)]

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.compile_ahead(lambda: [PLAN.launch(kernel) for kernel in kernels], GPU, interrupt)
    assert sum(len(kernel.threads) for kernel in kernels) < 60
    PLAN.launch(kernels[-1])
    assert len(kernels[-1].launched) == 1  # launches go to the device again


def test_other_threads_launch_meanwhile():
    mine, theirs = Kernel(), Kernel()

    def work():
        thread = threading.Thread(target=PLAN.launch, args=(theirs,))
        thread.start()
        thread.join()
        PLAN.launch(mine)

    module.compile_ahead(work, GPU)
    assert (len(mine.launched), len(theirs.launched)) == (0, 1)


@pytest.mark.parametrize("without", ["a device", "a compiler", "the mode"])
def test_where_nothing_is_compiled_nothing_is_done(without, monkeypatch):
    if without == "a compiler":
        monkeypatch.setattr(module, "interpreting", lambda: True)
    if without == "the mode":
        monkeypatch.setattr(module, "AsyncCompileMode", None)
    done = []
    module.compile_ahead(lambda: done.append(1), torch.device("cpu") if without == "a device" else GPU)
    assert not done
