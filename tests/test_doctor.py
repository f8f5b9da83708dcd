"""The doctor finds the reading that drafts best, names what to set, and says when it cannot tell."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import tiny_draft

import radar
from radar.cli.main import main
from radar.decoder import RadarDecoder
from radar.draft.checkpoint import load_draft, save_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.metrics import Round
from radar.policy.base import FixedDepth
from radar.tools.doctor import CHAIN, diagnose, render
from radar.tools.features import FeatureUse
from radar.tools.readings import plausible_readings, with_taps

ASSETS = Path(radar.__file__).parent / "assets"
CONFIG = with_taps(tiny_draft().config, 9)  # taps 2, 4, 6


class Fake:
    """A decoder whose rounds accept what a table says, over and over, until the text is long enough."""

    def __init__(self, accepted):
        self.accepted = accepted

    def rounds(self, prompt, *, max_new_tokens, do_sample):
        yield Round([0], is_prefill=True)
        left = max_new_tokens - 1
        for n in itertools.cycle(self.accepted[prompt[0] % len(self.accepted)]):
            yield Round([0] * min(n + 1, left), accept_length=n)
            left -= n + 1
            if left <= 0:
                return


def ask(readings, tables, prompts=4, share=None, places=500):
    """A diagnosis where reading i accepts `tables[i]`: a list of accepted lengths for each prompt; and, of a head that
    drafts little, `share` of the places tell something."""
    by_config = dict(zip(readings, tables, strict=True))

    def use(config, texts):
        assert config == max(readings, key=lambda c: sum(map(sum, by_config[c])))
        assert [text[:2] for text in texts] == [[i, 0] for i in range(prompts)]
        assert all(len(text) == 1 + 64 for text in texts)
        return FeatureUse(share, places)

    return diagnose(
        readings[0], readings, lambda c: Fake(by_config[c]), use, [[i] for i in range(prompts)], max_new_tokens=64
    )


def test_a_clear_winner_and_what_to_set():
    readings = plausible_readings(
        replace(CONFIG, norm_before_residual=True), num_layers=9, rope=(5e5, None), doubtful=["norm_before_residual"]
    )
    right = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(3, 5, 7), rope_theta=5e5, norm_before_residual=False)
    assert right in readings
    diagnosis = ask(readings, [[[3, 4, 3]] if r == right else [[1, 0, 1]] for r in readings])
    assert diagnosis.winner == right
    assert diagnosis.measurements[0].mean_acceptance_length == pytest.approx(13 / 3, rel=0.01)
    assert diagnosis.settings() == {
        "eagle_aux_hidden_state_layer_ids": [3, 5, 7],
        "rope_theta": 5e5,
        "norm_before_residual": False,
    }
    text = render(diagnosis)
    assert '  "eagle_aux_hidden_state_layer_ids": [3, 5, 7]\n  "rope_theta": 500000.0' in text
    assert '"norm_before_residual": false' in text
    assert "tap_layers=(3, 5, 7)" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[0] == "reading tokens per target pass of the best standing the file's"
    assert rows[2].startswith("taps 3 5 7, rope 500000, norm_before_residual false 4.3")
    assert rows[2].endswith(" 100% best")
    assert sum(row.endswith("worse yes") for row in rows) == 1
    assert "Not clear" not in text


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_unlike_readings_do_not_tie(prompts):
    """However much prompts differ in how well they draft, and however few there are: the stretches are the same."""
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    unequal = [[2], [1], [6], [0]]
    better = [[3], [2], [7], [1]]
    diagnosis = ask(readings, [unequal, better, [[0]]], prompts)
    assert diagnosis.winner == readings[1]


def test_no_clear_winner_is_said():
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    up_and_down = [[2, 4, 2, 4], [4, 2, 4, 2]]
    diagnosis = ask(readings, [up_and_down, up_and_down[::-1], [[0]]])
    assert diagnosis.winner is None
    assert {m.config for m in diagnosis.rivals} == {readings[0], readings[1]}
    text = render(diagnosis)
    assert "Not clear on so few prompts: eagle_aux_hidden_state_layer_ids; the file's own reading is among" in text
    assert "another target" not in text
    same = render(ask(readings, [[[2]], [[2]], [[2]]]))
    assert "No reading is clearly better than another" in same


def test_what_the_best_readings_share_is_set_and_the_rest_is_left_open():
    """Taps that are clear and a rope that makes no difference."""
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(1, 3, 5))
    readings = plausible_readings(config, num_layers=9, rope=(5e5, None))
    good = [r.eagle_aux_hidden_state_layer_ids == (2, 4, 6) for r in readings]
    assert sum(good) == 2
    diagnosis = ask(readings, [[[3, 4, 3]] if one else [[1, 0]] for one in good])
    assert diagnosis.winner is None
    assert diagnosis.settings() == {"eagle_aux_hidden_state_layer_ids": [2, 4, 6]}
    text = render(diagnosis)
    assert '"eagle_aux_hidden_state_layer_ids": [2, 4, 6]' in text
    assert "Not clear on so few prompts: rope_theta; any of the best will do" in text
    assert text.count("among the best") == 2


def test_a_file_that_is_right():
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    assert "read rightly as it is" in render(ask(readings, [[[3, 3]], [[1, 0]], [[1, 1]]]))


@pytest.mark.parametrize(
    ("share", "verdict", "others"),
    [
        (0.6, "So it is a head of this target, or of one much like it, with little training", ["for another"]),
        (0.5, "So nothing of this target is read: it is a head for another one, untrained,", ["of this target,"]),
        (0.56, "That is too little to tell a head with next to no training from one for another", ["nothing of"]),
    ],
)
def test_a_weak_head_is_told_from_one_for_another_target(share, verdict, others):
    """By the features, whether readings differ or not."""
    readings = plausible_readings(CONFIG, num_layers=9, rope=None)
    seldom, never = [[0, 0, 0, 0, 0, 1]], [[0]]
    text = render(ask(readings, [never, seldom, never], 8, share))
    assert "1.17 tokens per target pass, of which 1 is the target's." in text
    assert f"With the features of their own place {share:.0%} of 500 tokens are likelier" in text
    assert verdict in text
    assert not any(other in text for other in others)
    assert '"eagle_aux_hidden_state_layer_ids": [1, 3, 5]' in text
    text = render(ask(readings, [[[0, 0, 0, 0, 0, 1]], never, never], 8, share, 64))
    assert verdict in text
    text = render(ask(readings, [seldom, never, never], 8, share, 63))
    assert verdict not in text
    assert "Of fewer than 64 tokens that tells nothing; more prompts may." in text
    text = render(ask(readings, [[[0, 1]], [[0, 1]], [[0, 1]]], 8))
    assert "of 500 tokens" not in text


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
    else:  # two of the four taps tell as much as all of them
        readings = [r for r in readings if r.eagle_aux_hidden_state_layer_ids in ((2, 4, 6), (1, 3, 5))]
    limits = (
        {"prompts": prompts[:8], "max_new_tokens": 64} if doubtful else {"prompts": prompts[:5], "max_new_tokens": 32}
    )
    return diagnose(with_taps(config, 7), readings, make, None, **limits)


@pytest.mark.slow
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
    assert diagnosis.settings() == right


@pytest.mark.slow
def test_what_makes_no_difference_is_not_decided(pair):
    """The embedded head drafts alike with either residual, so the doctor must not choose."""
    diagnosis = examine(pair, pair[1].config, ["norm_before_residual"])
    assert diagnosis.winner is None
    assert {m.config.norm_before_residual for m in diagnosis.rivals} == {True, False}


@pytest.mark.slow
def test_the_command_on_a_misread_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("radar.target.quantised.describe", lambda model: f"so is {type(model).__name__}")
    shutil.copytree(ASSETS / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "config.json"
    config = json.loads(file.read_text()) | {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}
    file.write_text(json.dumps(config))
    arguments = ["doctor", str(ASSETS / "target"), str(tmp_path / "draft"), "--device", "cpu", "--dtype", "float32"]
    assert main([*arguments, "--limit", "5", "--max-new-tokens", "24", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "draft head of the SafeAILab format" in out
    assert "the target is quantised: so is LlamaForCausalLM\n" in out
    assert '"eagle_aux_hidden_state_layer_ids": [2, 4, 6]' in out
    assert " ".join(out.split("the file's")[1].splitlines()[2].split()).startswith("taps 2 4 6, rope 10000 ")
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--limit", "0"])
    assert "must be an integer of 1 or more, got '0'" in capsys.readouterr().err


def test_the_command_reads_a_file_that_the_loader_refuses(capsys, tmp_path):
    """A speculators file without norm_before_residual: the doctor measures what the loader will not guess; and a head
    whose draft ids are others' drafts nothing."""
    head = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    head.lm_head.weight.copy_(head.lm_head.weight.roll(700, 0))
    save_draft(head, tmp_path, layout="speculators")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_before_residual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["doctor", str(ASSETS / "target"), str(tmp_path), "--device", "cpu", "--dtype", "float32"]
    assert main([*arguments, "--limit", "2", "--max-new-tokens", "12", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "norm_before_residual is not stated: false" in out
    assert "norm_before_residual true" in out
    assert "The head drafts little however it is read: 1.0" in out
    found = re.search(r"% of (\d+) tokens are likelier than with those of another place; by chance", out)
    assert found is not None
    assert 12 <= int(found[1]) <= 2 * 12
