"""The rehearsal of a start: it meets every kernel that the start launches, changes nothing, and is not silent."""

import importlib
import io
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_graphs import with_fake_graphs
from fakes import tiny_draft, tiny_target

from radar import RadarDecoder, RadarPolicy, TreeConfig
from radar.engine import graph, rehearsal
from radar.engine.fallback import Fallback
from radar.engine.sampler import Sampler
from radar.policy.network import PolicyNetwork
from radar.target.cache import StaticKVCache

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREE = TreeConfig(total_tokens=16, max_calls=4)


def decoder(monkeypatch, rehearse):
    """RADAR that draws its decisions, with graphs that are Python; what rehearses is `rehearse`."""
    monkeypatch.setattr(graph, "rehearse", rehearse)
    ours = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=RadarPolicy(PolicyNetwork(), sample=True), tree=TREE, max_length=96,
        engine="eager",
    )  # fmt: skip
    return with_fake_graphs(monkeypatch, ours, fallback=Fallback())


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is a real one")
def test_a_rehearsal_leaves_no_trace(monkeypatch):
    outputs = []
    for rehearse in (lambda work, device: None, lambda work, device: work()):
        ours = decoder(monkeypatch, rehearse)
        outputs.append(ours.generate(PROMPT, max_new_tokens=50, seed=1, temperature=1.0))
    assert outputs[0].token_ids == outputs[1].token_ids
    assert outputs[0].metrics.stop_histogram == outputs[1].metrics.stop_histogram


@pytest.mark.skipif(torch.cuda.is_available(), reason="its graphs are Python")
@torch.inference_mode()
def test_a_rehearsal_that_fails_leaves_no_trace(monkeypatch):
    """Counts of a long chunk would be indices of the next, shorter one."""
    admission = decoder(monkeypatch, lambda work, device: None).engine.admission
    prefill = admission.prefill

    def fail(rows):
        prefill.count.fill_(99), prefill.known.fill_(98)
        raise MemoryError

    prefill.chunk = fail
    with pytest.raises(MemoryError):
        admission.rehearse()
    assert (prefill.count.tolist(), prefill.known.tolist()) == ([1], [0])


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
def test_a_start_launches_what_was_rehearsed(monkeypatch):
    import radar_kernels
    from radar_kernels import _launch, compile_ahead

    for name in (module.name for module in pkgutil.iter_modules(radar_kernels.__path__)):
        op = importlib.import_module(f"radar_kernels.{name}")
        if hasattr(op, "choose_backend"):
            monkeypatch.setattr(op, "choose_backend", lambda op, backend, *tensors: backend or "triton")
    met, launched, launch = set(), {}, _launch.Plan.launch

    def key_of(plan, kernel, arguments):
        return kernel.fn.__name__, str(plan.constants), *map(compile_ahead._kind, arguments)

    def rehearse(work, device):
        token = _launch.withheld.set(lambda *what: met.add(key_of(*what)))
        with compile_ahead._Zeros():
            work()
        _launch.withheld.reset(token)

    def recorded(plan, kernel, *arguments):
        if _launch.withheld.get() is None:
            launched[key_of(plan, kernel, arguments)] = plan
        launch(plan, kernel, *arguments)

    monkeypatch.setattr(_launch.Plan, "launch", recorded)
    # what is shorter on a CPU, but other work: a way for greedy texts, a window of the caches
    monkeypatch.setattr(Sampler, "is_greedy", False)
    monkeypatch.setattr(StaticKVCache, "set_window", lambda cache, rows: None)
    ours = decoder(monkeypatch, rehearse)
    rounds = ours.rounds(PROMPT, max_new_tokens=40)
    assert next(rounds).is_prefill
    next(rounds)
    assert len(launched) > 15
    assert not {name for name, *_ in launched.keys() - met}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "seconds", "expected"),
    [
        (Terminal, 0.6, ""),
        (io.StringIO, 0.6, ""),
        (io.StringIO, 1.0, "radar: compiling 3 kernels for NVIDIA H200, once: 2 done\n"),
        (
            Terminal,
            1.0,
            "\rradar: compiling 3 kernels for NVIDIA H200, once: 2 done"
            "\rradar: compiling 3 kernels for NVIDIA H200, once: 3 done\n",
        ),
    ],
)
def test_who_waits_is_told(stream, seconds, expected, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(sys, "stderr", said := stream())
    say = rehearsal.line_of(torch.device("cuda"))
    now[0] = 10.0
    for done in (0, 1, 2, 3):
        now[0] += seconds
        say(done, 3)
    assert said.getvalue() == expected


def test_without_stderr_nothing_is_said(monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    rehearsal.line_of(torch.device("cuda"))(1, 2)  # as under pythonw


SCRIPT = """
import sys
import triton
from fakes import tiny_draft, tiny_target
from radar import AutoregressiveDecoder, RadarDecoder

late, early = [], []
def compiled(*, fn, is_manual_warmup, **_):
    (early if is_manual_warmup else late).append(fn.name)
triton.knobs.runtime.jit_post_compile_hook = compiled
model = tiny_target(max_position_embeddings=4096).half()
plain = AutoregressiveDecoder(model, max_length=2100)
radar = RadarDecoder(model, draft=tiny_draft().half(), max_length=2100)
for length in (1, 16, 65, 530, 2060):
    plain.generate([3] * length, max_new_tokens=9)
    radar.generate([3] * length, max_new_tokens=9)
print(sorted(late), file=sys.stderr)
assert early and not late
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_with_an_empty_cache_all_is_compiled_ahead(tmp_path):
    tests = Path(__file__).parent
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{tests.parent}:{tests}"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
