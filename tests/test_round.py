"""bench.round counts the rounds that it times, though the device is always one ahead of the host."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench.round
from bench.round import gpu_per_round, wall_per_round

MILLISECONDS = 7.0  # of a round


class Device:
    """A clock and a device that works off one launch after the other; the host itself takes no time."""

    def __init__(self):
        self.now = 0.0
        self.free = 0.0
        self.launches = 0
        self.launched = False

    def launch(self):
        self.launches += 1
        self.free = max(self.free, self.now) + MILLISECONDS / 1000
        return self.free

    def wait(self, until):
        self.now = max(self.now, until)

    def rounds(self, prompt, *, max_new_tokens, sampling):
        """As `radar.generation` does it: the next round is launched before this one is handed out."""
        self.wait(self.launch())
        while True:
            done = self.launch()
            yield
            self.wait(done)

    def launch_next(self):
        """As `GraphEngine` does it: a round that is launched already is not launched again."""
        if not self.launched:
            self.launched = True
            self.launch()

    def discard(self):
        self.launched = False


@pytest.fixture
def device(monkeypatch):
    device = Device()

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = max(device.free, device.now)

        def synchronize(self):
            device.wait(self.at)

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(bench.round.time, "perf_counter", lambda: device.now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: device.wait(device.free))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return device


def test_a_decoding_loop_takes_as_long_as_its_rounds(device):
    assert wall_per_round(device, [1]) == pytest.approx(MILLISECONDS)


@pytest.mark.parametrize("left_over", [False, True])
def test_what_a_closed_generation_left_launched_is_not_counted_as_a_round(device, left_over):
    if left_over:
        device.launch_next()
    before = device.launches
    assert gpu_per_round(device, repeats=20) == pytest.approx(MILLISECONDS)
    assert device.launches - before == 20


def test_a_second_start_finds_what_the_first_has_compiled(monkeypatch):
    caches = []

    def run(command, *, env, **_):
        cache = Path(env["TRITON_CACHE_DIR"])
        caches.append((cache, [file.name for file in cache.iterdir()]))
        (cache / "kernel").touch()
        assert command[1:] == ["-m", "bench.round", "--starts", "--start-only"]
        return SimpleNamespace(stdout=json.dumps({"start_s": float(len(caches))}))

    monkeypatch.setattr(bench.round.subprocess, "run", run)
    monkeypatch.setattr(bench.round.sys, "argv", ["round.py", "--starts"])
    assert bench.round.starts() == {"start_first_s": 1.0, "start_second_s": 2.0}
    assert [found for _, found in caches] == [[], ["kernel"]]
    assert caches[0][0] == caches[1][0]
