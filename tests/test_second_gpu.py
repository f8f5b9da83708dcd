"""A model on another device than the current one: launches, events and memory go where the model is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.tools.profile import profile_round

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
OPTIONS = {"max_length": 200}


def pair(device):
    return tiny_target().to(device), tiny_draft().to(device)


@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_texts_on_the_second_device_while_the_first_is_current(engine):
    assert torch.cuda.current_device() == 0
    model, draft = pair("cuda:1")
    torch.cuda.synchronize(0)
    elsewhere = torch.cuda.memory_allocated(0)
    expected = hf_greedy(model, PROMPT, 60)
    tree = TreeConfig(total_tokens=24, max_calls=6)
    ours = RadarDecoder(model, draft=draft, policy=FixedDepth(4), tree=tree, engine=engine, **OPTIONS)
    plain = AutoregressiveDecoder(model, engine=engine, **OPTIONS)
    for decoder in (ours, plain):
        assert decoder.generate(PROMPT, max_new_tokens=60).token_ids == expected
        sampled = [decoder.generate(PROMPT, max_new_tokens=30, temperature=0.9, seed=3).token_ids for _ in range(2)]
        assert sampled[0] == sampled[1]
    ours.policy = FixedDepth(2)
    assert ours.generate(PROMPT, max_new_tokens=60).token_ids == expected
    assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(0) == elsewhere


def test_decoders_on_both_devices_take_turns():
    tree = TreeConfig(total_tokens=24, max_calls=6)
    decoders = []
    for device in ("cuda:0", "cuda:1"):
        model, draft = pair(device)
        decoders.append(RadarDecoder(model, draft=draft, policy=FixedDepth(4), tree=tree, **OPTIONS))
    rounds = [decoder.rounds(PROMPT, max_new_tokens=60) for decoder in decoders]
    texts = [[], []]
    while not all(one.has_ended for one in rounds):
        for text, one in zip(texts, rounds, strict=True):
            item = next(one, None)
            text += item.tokens if item else []
    assert texts[0] == texts[1] == hf_greedy(decoders[0].model, PROMPT, 60)


def test_a_model_that_moves_to_the_other_device_decodes_there(tmp_path):
    from radar.draft.checkpoint import save_draft

    save_draft(tiny_draft(), tmp_path)
    model, _ = pair("cuda:0")
    decoder = RadarDecoder(model, draft=tmp_path, tree=TreeConfig(total_tokens=24, max_calls=6), **OPTIONS)
    expected = decoder.generate(PROMPT, max_new_tokens=40).token_ids
    model.to("cuda:1")
    assert decoder.generate(PROMPT, max_new_tokens=40).token_ids == expected
    assert decoder.engine.target.cache.keys.device == torch.device("cuda:1")
    assert decoder.draft.fc.weight.device == torch.device("cuda:1")


def test_what_profiles_and_records_works_there_too(tmp_path):
    from radar.replay.record import record

    model, draft = pair("cuda:1")
    tree = TreeConfig(total_tokens=24, max_calls=6)
    decoder = RadarDecoder(model, draft=draft, tree=tree, fallback=False, **OPTIONS)
    assert profile_round(decoder.engine, prefix=40, calls=3, repeats=3).whole > 0
    eager = RadarDecoder(model, draft=draft, tree=tree, fallback=False, engine="eager", **OPTIONS)
    report = record(eager, [PROMPT, PROMPT[::-1]], tmp_path / "rounds", max_new_tokens=40, progress=False)
    assert report["prompts"] == 2


def test_a_model_on_both_devices_says_what_it_says_on_one(tmp_path):
    """As graphs, over NCCL: rounds and rows as plain steps of the same ranks, in 16 bits too, and as one device."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "bench.parallel", "--only", "texts", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads((tmp_path / "out.json").read_text())["texts"].items():
        assert found["to the same ranks"]["equal_texts"] == found["rows together"] == 1.0, name
        if name == "float32":  # in 16 bits the order of summation decides ties
            assert found["to one card"]["equal_texts"] == 1.0
