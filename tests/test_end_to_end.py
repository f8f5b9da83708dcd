"""The end-to-end comparison: the whole pipeline on tiny shapes, what follows it, and what it refuses."""

import json
from collections import Counter

import pytest
from fakes import DEVICE
from laboratory import SHAPES, command, fill_work, make_laboratory
from measured_runs import full_runs

from bench import end_to_end, tables
from bench.lab.policies import METHODS
from bench.lab.sets import TASKS
from bench.runs import AUTOREGRESSIVE, key_of
from bench.summary import summarise
from radar.tools.costs import CostTable


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return fill_work(make_laboratory(tmp_path_factory.mktemp("lab")))


@pytest.mark.slow
def test_the_whole_pipeline(lab):
    """Behind recorded rounds and a cost table: from choosing policies to the result file and every single run."""
    stages = ["check", "policies", "replay", "measure", "generate"]
    assert end_to_end.main(command(lab, "--seconds", "0", "--stages", *stages), SHAPES) == end_to_end.OUT_OF_TIME
    assert end_to_end.main(command(lab, "--stages", *stages), SHAPES) == 0
    runs = lab / "work" / "llama" / "runs.jsonl"
    first = runs.read_bytes()
    runs.write_bytes(first[:-30])  # a crash tore the last line
    assert end_to_end.main(command(lab, "--stages", *stages, "summary"), SHAPES) == 0
    assert runs.read_bytes().startswith(first[: first[:-30].rfind(b"\n")])  # it went on where it was
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert len(lines) == len(TASKS) * (1 + len(METHODS))

    full = json.loads((lab / "results" / "cells.json").read_text())
    kept = [json.loads(line) for line in (lab / "results" / "cells.jsonl").read_text().splitlines()]
    assert Counter(map(key_of, kept)) == Counter(map(key_of, lines))  # every run is kept ...
    again = summarise(kept, full["generate"], full["replay"])
    assert json.loads(json.dumps(again)) == {name: full[name] for name in again}  # ... and says the same again
    assert len(full["cells"]) == len(TASKS)
    for cell in full["cells"].values():
        assert cell["texts_identical"] == cell["prompts"] == 1
        assert set(cell["methods"]) == {AUTOREGRESSIVE, *METHODS}
        assert cell["methods"]["eagle3"]["draft_calls_per_round"] == 8
        assert cell["methods"]["eagle3"]["mean_acceptance_length"] > 1
        assert cell["methods"]["published"]["draft_calls_per_round"] <= 8
        assert {method: tables.nodes_of(full, cell, method) for method in METHODS} == {
            method: cell["methods"][method]["nodes"] for method in METHODS
        }
    assert {"radar_over_generate", "replay_error", "draft_calls_change"} <= full["overall"]["0"].keys()
    assert full["pairs"]["llama"]["check"] == {"float32 texts equal": 4, "prompts": 4}
    generated = full["generate"]["llama"]["dynamic"]
    # on a GPU the wide pair is bfloat16, which `model.generate` rounds in an order of its own
    assert generated["prompts"] == 4
    assert generated["texts_equal"] == 4 or DEVICE.type == "cuda"
    assert full["pairs"]["llama"]["choices"]["T0"]["fixed"].keys() == set(TASKS)
    assert str(lab) not in full["command"]


def test_runs_of_another_device_are_not_mixed(lab, tmp_path):
    work = tmp_path / "llama"
    work.mkdir()
    table = CostTable.constant(call=1.0, rest=1.0, device="another card")
    table.save(work / "costs.json")
    with pytest.raises(ValueError, match="another card"):
        end_to_end.main([*command(lab, "--stages", "measure"), "--work", str(tmp_path)], SHAPES)


def test_prompts_are_needed_to_measure():
    with pytest.raises(SystemExit):
        end_to_end.parse(["--stages", "measure"])


def test_nothing_measured_is_said(tmp_path):
    (tmp_path / "llama").mkdir()
    with pytest.raises(ValueError, match="no runs under"):
        end_to_end.summary(tmp_path, "command")


def test_a_stopped_comparison_is_summed_up_without_what_it_lacks():
    """gsm8k has its prompts; of mbpp's first one two methods are there, and RADAR's turn never came."""
    runs = [one for one in full_runs() if one["task"] == "gsm8k" or (one["prompt"], one["method"]) == (0, "eagle3")]
    assert list(summarise(runs, {"a": {"static": {"tokens_per_second": 2.0}}}, {})["cells"]) == ["a gsm8k T=0"]
