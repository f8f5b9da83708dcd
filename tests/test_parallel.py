"""One model on two ranks: texts of one process, whatever rank 0 is asked for, and an end of all of them together."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import tiny_target
from transformers import LlamaConfig

from radar import AutoregressiveDecoder, RadarDecoder
from radar.cli.main import main, make_parser
from radar.engine.channel import Channel, Message, Op
from radar.errors import RanksError, UsageError
from radar.generation.follower import Follower
from radar.target.launched import launched_ranks
from radar.target.load import load_model
from radar.target.parallel import check_split, localize
from radar.target.ranks import Ranks, own_device, ranks_of
from radar.target.split import GatheredLinear, SummedLinear
from radar_kernels import Parts, add_rms_norm

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}  # torch reads it at once
JOB = Path(__file__).parent / "parallel_job.py"


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """What the jobs came to; they run once, whoever of the test's processes needs them first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen") else base) / "parallel"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found := folder / "jobs.json").exists():
            path = {"PYTHONPATH": os.pathsep.join((str(JOB.parent.parent), str(JOB.parent)))}
            command = [sys.executable, str(JOB), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT | path)
            assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(found.read_text())


def result_of(jobs, name):
    job = jobs[name]
    assert job["codes"] == [0, 0], "\n".join(job["err"])
    return job["result"]


def test_texts_of_two_ranks_are_those_of_one_process(jobs):
    """Greedy, sampled and through processors with a state, of one row and several, which join, leave and end."""
    ours, alone = result_of(jobs, "embedded")["texts"]
    assert ours == alone
    assert len(ours) == 8
    assert all(ours.values())


def test_graphs_are_launched_ahead_on_all_ranks(jobs):
    """The host's side of a GPU's engines, whose rounds and plain steps come and go by rank 0's clock. What ranks verify
    are rank 0's trees, whatever another one drafts."""
    assert result_of(jobs, "graphs") == result_of(jobs, "embedded")["texts"][1]


def test_a_clock_that_only_rank_0_reads_changes_no_text(jobs):
    ours, alone = result_of(jobs, "embedded")["unsteady"]
    assert ours == alone


def test_policies_change_on_all_ranks(jobs):
    changed = result_of(jobs, "embedded")["policies"]
    assert all(ours == alone for ours, alone in changed)
    assert changed[0] == changed[2] != changed[1]


def test_a_text_without_a_seed_has_one_on_all_ranks(jobs):
    assert result_of(jobs, "embedded")["without a seed"] == [6, 6]


def test_errors_of_requests_and_engines_end_no_job(jobs):
    said = result_of(jobs, "embedded")["errors"]
    assert said["one"] == said["rows"] == "a processor has had enough"
    assert "make it of a class that a module" in said["local"]
    assert "needs TreeConfig(max_calls=9)" in said["deep"]
    assert said["nested"] == 0
    refused, ours, alone = said["assigned"]
    assert refused == 0
    assert ours == alone
    assert said["interrupted"] == [True] * 3
    assert said["engine"] == "planted: the engine fails"
    assert said["again"] == [True, False]  # the text, by a new engine
    assert {"follow", "late"} & set(said) == set()


def test_what_needs_the_whole_model_is_refused(jobs):
    """It would wait for ranks that do not come."""
    *tools, forward, generate = result_of(jobs, "embedded")["errors"]["alone"]
    names = ["profile_round", "profile_steps", "record", "a full round"]
    assert [text.split(" needs the whole model in one process")[0] for text in tools] == names
    assert forward == generate
    assert "ask its decoder on rank 0" in forward


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "biased"])
def test_families(jobs, kind):
    """Rank 0's trees count here too, one for each row."""
    ours, alone = result_of(jobs, "families")[kind]
    assert ours == alone


def test_a_rank_that_fails_ends_the_job_and_says_why(jobs):
    job = jobs["follower_fails"]
    assert job["codes"][1] == 1
    assert "RuntimeError: planted: the engine fails" in job["err"][1]
    assert job["codes"][0] == 1
    assert "RanksError: another rank has ended" in job["err"][0]


def test_rank_0_that_fails_alone_ends_the_job(jobs):
    """The others wait for it, in the middle of a forward."""
    job = jobs["leader_fails"]
    assert job["codes"][0] == 1
    assert "RuntimeError: planted: the engine fails" in job["err"][0]
    assert job["codes"][1] != 0


def test_ranks_that_part_are_found_out(jobs):
    job = jobs["ranks_part"]
    assert job["codes"][1] == 1
    assert "RanksError: rank 1 has decoded something else than rank 0" in job["err"][1]


def test_the_other_ranks_end_with_rank_0(jobs):
    raised = jobs["leader_raises"]
    assert raised["codes"] == [1, 0]
    assert "planted: rank 0 has had enough" in raised["err"][0]
    assert raised["err"][1] == ""
    died = jobs["leader_dies"]
    assert died["codes"] == [0, 1]
    assert "RanksError: rank 0 has ended without saying so" in died["err"][1]


def test_generate_prints_once(jobs):
    result_of(jobs, "generate")
    out = jobs["generate"]["out"]
    assert out[0].startswith("def fibonacci(n):")
    assert out[1] == ""
    assert "16 tokens" in jobs["generate"]["err"][0]


def test_serve_answers_on_rank_0_and_ends_by_a_signal_to_all(jobs):
    found = result_of(jobs, "serve")
    assert len({text for name, text in found.items() if name != "stream"}) == 1
    assert found["stream"].endswith("data: [DONE]\n\n")
    assert jobs["serve"]["err"][1] == ""


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"num_attention_heads": 5, "hidden_size": 40}, "attention heads"),
        ({"num_key_value_heads": 1}, "key-value heads"),
        ({"intermediate_size": 33}, "columns of the MLP"),
        ({"vocab_size": 17}, "ids of the vocabulary"),
    ],
)
def test_what_ranks_cannot_share_evenly_is_refused(sizes, what):
    whole = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32, "vocab_size": 18}
    check_split(LlamaConfig(**whole), 2)
    with pytest.raises(UsageError, match=what):
        check_split(LlamaConfig(**whole | sizes), 2)


def test_a_failure_on_rank_0_is_no_parting(monkeypatch):
    told = Channel.__new__(Channel)
    told.rank, told._seen, told._waiting = 1, 5, None

    def broadcast(head, *_, op, **options):
        head.copy_(torch.tensor([op, 0, 0, 7, 0]))
        return SimpleNamespace(wait=lambda patience: None)

    monkeypatch.setattr(torch.distributed, "broadcast", partial(broadcast, op=Op.FAILED))
    assert told.hear().op is Op.FAILED
    monkeypatch.setattr(torch.distributed, "broadcast", partial(broadcast, op=Op.ROUND))
    with pytest.raises(RanksError, match="rank 1 has decoded something else"):
        told.hear()


def test_adapters_are_refused_before_ranks_meet(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="merge the adapters first"):
        load_model(str(tmp_path), device=torch.device("cpu"), dtype=None, tp_plan="auto")


def test_a_decoder_that_a_rank_has_not_kept_is_named():
    channel = SimpleNamespace(rank=1, hear=lambda: Message(Op.ROUND, 7, 0, None))
    follower = Follower(SimpleNamespace(recipe=SimpleNamespace(number=3, channel=channel)))
    with pytest.raises(RanksError, match="rank 1 has no decoder 7"):
        follower.follow()


def test_one_process_is_no_rank(monkeypatch):
    with pytest.raises(UsageError, match='tp_plan must be "auto"'):
        RadarDecoder.from_pretrained(tp_plan={})
    decoder = AutoregressiveDecoder(tiny_target(), max_length=50)
    assert not decoder.is_follower
    with pytest.raises(UsageError, match="ranks of torchrun other than 0"):
        decoder.follow()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_ranks() == 1
    assert make_parser().parse_args(["serve"]).shutdown_seconds == 30
    monkeypatch.setenv("RANK", "1")
    assert launched_ranks() == 4
    assert make_parser().parse_args(["serve"]).shutdown_seconds == 20  # torchrun kills after 30


def test_each_rank_runs_on_a_card_of_its_own(monkeypatch, capsys):
    assert own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_device("cpu") == "cpu"
    assert [own_device(asked) for asked in (None, "cuda", torch.device("cuda"), "cuda:1")] == ["cuda:1"] * 4
    with pytest.raises(UsageError, match="'cuda:0' is not this rank's"):
        RadarDecoder.from_pretrained(device="cuda:0", tp_plan="auto")
    assert main(["generate", "x", "--device", "cuda:0"]) == 2
    assert "'cuda:0' is not this rank's" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # Triton's interpreter cuts bfloat16 off
def test_what_ranks_add_up_is_summed_in_float32_and_rounded_once(dtype, device):
    values = torch.randn(3, 2, 5, 64, device=device).to(dtype)
    bias = torch.randn(64, device=device).to(dtype)
    residual, weight = torch.randn(2, 5, 64, device=device).to(dtype), torch.rand(64, device=device).to(dtype)
    parts = Parts(values, None, bias, dtype)
    assert torch.equal(parts.added(), ((values[0].float() + values[1]) + values[2] + bias).to(dtype))
    total, normed = add_rms_norm(residual, parts, weight, 1e-6, backend="triton")
    expected = add_rms_norm(residual, parts.added(), weight, 1e-6, backend="triton")
    assert torch.equal(total, expected[0])
    assert torch.equal(normed, expected[1])


class Threads(Ranks):
    """Ranks that are threads, which meet at a barrier."""

    meeting, given = threading.Barrier(2), [None, None]

    def gather(self, x):
        self.given[self.rank] = x.clone()
        self.meeting.wait(60)
        parts = torch.stack(list(self.given))
        self.meeting.wait(60)
        return parts


def part_of(model, rank):
    """A rank's part of a model, made as transformers' plan says."""
    ranks = Threads(rank, 2)
    localize(model, ranks, lambda p, dim: p.data if dim is None else p.data.chunk(2, dim)[rank].clone())
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_layers_in_kernels_are_split_too(family, is_fused):
    """The fused layers of both ranks give what the stock model gives, rows of a prompt and of a round."""
    models = [tiny_target(family, vocab_size=18, attention_bias=True) for _ in range(3)]
    whole = AutoregressiveDecoder(models[0], max_length=100)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]], device=models[0].device)
    with torch.inference_mode():
        expected, _ = whole.engine.target.verify_chain(ids)
    parts = [part_of(model, rank) for rank, model in enumerate(models[1:])]
    assert isinstance(parts[0].lm_head, GatheredLinear)
    assert isinstance(parts[1].model.layers[0].mlp.down_proj, SummedLinear)
    assert ranks_of(parts[1]).rank == 1
    found = [None, None]

    def run(rank):
        from radar.target.model import TargetModel

        with torch.inference_mode():
            target = TargetModel(parts[rank], max_length=100, max_rows=16, tap_layers=())
            assert target.cache.keys.shape[2] == 1  # key-value heads of a rank
            if is_fused:
                target.bound.fuse()
            found[rank] = target.verify_chain(ids)[0]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
