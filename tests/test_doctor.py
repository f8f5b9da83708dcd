"""The doctor finds the reading that drafts best, names what to set, and says when it cannot tell."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import tiny_draft, tiny_target

import radar
from radar.cli.main import main
from radar.decoder import RadarDecoder
from radar.draft.checkpoint import load_draft, save_draft
from radar.draft.config import RopeScaling
from radar.draft.eagle3 import Eagle3Draft
from radar.metrics import Round, summarize
from radar.policy.base import FixedDepth
from radar.tools.doctor import CHAIN, diagnose, plausible_readings, render, target_rope, with_taps

ASSETS = Path(radar.__file__).parent / "assets"
CONFIG = with_taps(tiny_draft().config, 9)  # taps 2, 4, 6


class Fake:
    """A decoder that accepts what a table says, prompt by prompt."""

    def __init__(self, accepted):
        self.accepted = accepted

    def generate(self, prompt, *, max_new_tokens):
        rounds = [Round([0] * (n + 1), accept_length=n) for n in self.accepted[prompt[0]]]
        return SimpleNamespace(metrics=summarize(rounds, 1.0))


def ask(readings, tables, prompts=4):
    by_config = dict(zip(readings, tables, strict=True))
    return diagnose(
        readings[0], readings, lambda c: Fake(by_config[c]), [[i] for i in range(prompts)], max_new_tokens=8
    )


def test_readings_of_a_plain_head():
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=None)
    readings = plausible_readings(config, num_layers=10, rope=(5e5, None))
    assert readings[0] == with_taps(config, 10)
    taps = [r.eagle_aux_hidden_state_layer_ids for r in readings]
    assert taps == [t for t in [(2, 5, 7), (1, 4, 6), (3, 6, 8)] for _ in range(2)]
    assert [r.rope_theta for r in readings] == [1e4, 5e5] * 3
    assert len(set(readings)) == len(readings)


def test_readings_of_a_head_that_says_more():
    scaled = (5e5, RopeScaling(rope_type="linear", factor=2.0))
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(1, 4, 7), rope_theta=1e6, norm_output=True)
    readings = plausible_readings(config, num_layers=9, rope=scaled, doubtful=["norm_output", "rope_theta"])
    assert {r.eagle_aux_hidden_state_layer_ids for r in readings} == {(1, 4, 7), (2, 4, 6), (0, 3, 6), (2, 5, 8)}
    assert {(r.rope_theta, r.rope_scaling) for r in readings} == {(1e6, None), scaled, (1e4, None)}
    assert {r.norm_output for r in readings} == {True, False}
    assert {r.norm_before_residual for r in readings} == {False}
    assert len(readings) == 4 * 3 * 2
    assert readings[0] == config


def test_taps_that_the_target_lacks_are_left_out():
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(2, 5, 9))
    taps = {r.eagle_aux_hidden_state_layer_ids for r in plausible_readings(config, num_layers=9, rope=None)}
    assert taps == {(2, 4, 6), (1, 4, 8)}
    with pytest.raises(ValueError, match=r"taps \[2, 30\] .* do not exist in a target of 9 layers"):
        plausible_readings(
            replace(CONFIG, num_aux_hidden_states=2, eagle_aux_hidden_state_layer_ids=(2, 30)), num_layers=9, rope=None
        )


def test_a_clear_winner_and_what_to_set():
    readings = plausible_readings(
        replace(CONFIG, norm_before_residual=True), num_layers=9, rope=(5e5, None), doubtful=["norm_before_residual"]
    )
    right = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(3, 5, 7), rope_theta=5e5, norm_before_residual=False)
    assert right in readings
    good, bad = [[3, 4, 3]] * 4, [[1, 0, 1]] * 4
    diagnosis = ask(readings, [good if r == right else bad for r in readings])
    assert diagnosis.winner == right
    assert diagnosis.measurements[0].mean_acceptance_length == pytest.approx(13 / 3)
    wanted = {
        "eagle_aux_hidden_state_layer_ids": [3, 5, 7],
        "rope_theta": 5e5,
        "norm_before_residual": False,
    }
    assert diagnosis.settings(right) == wanted
    text = render(diagnosis)
    assert '  "eagle_aux_hidden_state_layer_ids": [3, 5, 7]\n  "rope_theta": 500000.0' in text
    assert '"norm_before_residual": false' in text
    assert "tap_layers=(3, 5, 7)" in text
    table = text.splitlines()
    assert " ".join(table[1].split()) == "* taps 3 5 7, rope 500000, norm_before_residual false 4.33"
    assert sum("as the file is read" in line for line in table) == 1


def test_no_clear_winner_is_said():
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    tables = [[[2], [4], [2], [4]], [[4], [2], [4], [3]], [[0], [0], [0], [0]]]
    diagnosis = ask(readings, tables)
    assert diagnosis.winner is None
    assert [m.config for m in diagnosis.rivals] == [readings[1], readings[0]]
    assert "No clear winner between these" in render(diagnosis)
    assert ask(readings, [[[5]], [[1]], [[1]]], prompts=1).winner is None, "one prompt decides nothing"


def test_a_file_that_is_right_and_a_head_that_is_useless():
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    assert "read rightly as it is" in render(ask(readings, [[[3, 3]] * 4, [[1, 0]] * 4, [[1, 1]] * 4]))
    assert "No reading drafts well" in render(ask(readings, [[[0, 0]] * 4, [[0, 0]] * 4, [[0, 0]] * 4]))


def test_the_targets_rope():
    assert target_rope(tiny_target().config) == (10000.0, None)
    llama = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    found = target_rope(tiny_target(rope_parameters=llama).config)
    assert found is not None
    assert (found[0], found[1].rope_type, found[1].factor) == (5e5, "llama3", 8.0)
    assert (
        target_rope(SimpleNamespace(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2})) is None
    )


@pytest.fixture(scope="module")
def pair():
    decoder = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=160)
    from radar.tools.prompts import encode_prompt, load_prompts

    prompts = [encode_prompt(line, decoder.tokenizer) for line in load_prompts(ASSETS / "prompts.jsonl", limit=8)]
    head = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    return decoder, head, prompts


def examine(pair, config, doubtful=()):
    decoder, head, prompts = pair

    def make(reading):
        draft = Eagle3Draft(reading).eval().requires_grad_(False)
        draft.load_state_dict(head.state_dict())
        return RadarDecoder(
            decoder.model, draft=draft, policy=FixedDepth(8), tree=CHAIN, max_length=160, fallback=False
        )

    readings = plausible_readings(config, num_layers=7, rope=(10000.0, None), doubtful=doubtful)
    if doubtful:  # norms move acceptance less than taps: more prompts, and the taps are left alone
        readings = [r for r in readings if r.eagle_aux_hidden_state_layer_ids == (2, 4, 6)]
    return diagnose(with_taps(config, 7), readings, make, prompts[: 8 if doubtful else 5], max_new_tokens=32)


@pytest.mark.parametrize(
    ("wrong", "doubtful", "right"),
    [
        (
            {"eagle_aux_hidden_state_layer_ids": (1, 3, 5), "rope_theta": 50.0},
            [],
            {"eagle_aux_hidden_state_layer_ids": [2, 4, 6], "rope_theta": 10000.0},
        ),
        ({"norm_output": True}, ["norm_output"], {"norm_output": False}),
    ],
)
def test_the_embedded_heads_true_reading_is_found(pair, wrong, doubtful, right):
    head = pair[1].config
    diagnosis = examine(pair, replace(head, **wrong), doubtful)
    assert diagnosis.winner == head, render(diagnosis)
    assert diagnosis.settings(diagnosis.winner) == right


def test_what_makes_no_difference_is_not_decided(pair):
    """The embedded head drafts alike with either residual, so the doctor must not choose."""
    diagnosis = examine(pair, pair[1].config, ["norm_before_residual"])
    assert diagnosis.winner is None
    assert {m.config.norm_before_residual for m in diagnosis.rivals} == {True, False}


def test_the_command_on_a_misread_file(capsys, tmp_path):
    shutil.copytree(ASSETS / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "config.json"
    config = json.loads(file.read_text()) | {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}
    file.write_text(json.dumps(config))
    arguments = ["doctor", str(ASSETS / "target"), str(tmp_path / "draft"), "--device", "cpu", "--dtype", "float32"]
    assert main([*arguments, "--limit", "5", "--max-new-tokens", "24", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "draft head of the SafeAILab format" in out
    assert '"eagle_aux_hidden_state_layer_ids": [2, 4, 6]' in out
    assert "* taps 2 4 6, rope 10000" in out
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--limit", "0"])
    assert "must be an integer of 1 or more, got '0'" in capsys.readouterr().err


def test_the_command_reads_a_file_that_the_loader_refuses(capsys, tmp_path):
    """A speculators file without norm_before_residual: the doctor measures what the loader will not guess."""
    head = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    save_draft(head, tmp_path, layout="speculators")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_before_residual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["doctor", str(ASSETS / "target"), str(tmp_path), "--device", "cpu", "--dtype", "float32"]
    assert main([*arguments, "--limit", "2", "--max-new-tokens", "12", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "norm_before_residual is not stated: false" in out
    assert "norm_before_residual true" in out
