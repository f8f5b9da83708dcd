"""The figures of a GPU run: which measurement each of them is, and that nothing is written from half a run."""

import json
import sys

import pytest

from bench import collect


def kernel(name, us, us_min=None):
    """An entry of pytest-benchmark's file."""
    facts = {"us": us, "us_min": us if us_min is None else us_min, "GB/s": 1.0, "device": "a card"}
    return {"name": f"test_{name}", "group": None, "extra_info": facts, "stats": {"median": 0.5}}


def spread(median):
    return {"median": median, "lowest": median / 2, "highest": median * 3}


@pytest.fixture
def measured():
    """Every number differs from every other one, and rows that no figure takes stand among the rest."""
    rows = [kernel(name, 100.0 + i) for i, name in enumerate(collect.KERNEL_KEYS.values())]
    return {"benchmarks": [kernel("lstm_step[1x128-torch]", 900.0), *rows, kernel("accept_nodes[60-3-triton]", 901.0)]}


@pytest.fixture
def report():
    names = ("ar", "fixed8", "radar8", "fixed8_gpu", "radar8_gpu", "radar8_t1", "radar8_t1_gpu")
    part = {"verify": 5.0, "draft_step": 0.5, "decision": 0.25, "whole": 30.0}
    return {
        "command": "python -m bench.round --out round.json",
        "machine": {"hardware": "a card", "commit": "where it was started"},
        "milliseconds": {name: spread(2.0 ** (i + 1)) for i, name in enumerate(names)},
        "decision_us": 3.5,
        "syncs": {"waits_inside_a_round": 0.1},
        "parts": [part, part | {"verify": 6.0}, part | {"verify": 7.0}],
    }


@pytest.fixture
def run(tmp_path, monkeypatch, measured, report):
    """Runs the command on both files; returns what it wrote, by file name."""
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(collect, "RESULTS", results)

    def call():
        kernels, whole = tmp_path / "kernels.json", tmp_path / "round.json"
        kernels.write_text(json.dumps(measured))
        whole.write_text(json.dumps(report))
        words = ["collect", "--kernels", str(kernels), "--round", str(whole), "--commit", "abc1234"]
        monkeypatch.setattr(sys, "argv", words)
        assert collect.main() == 0
        return {file.stem: json.loads(file.read_text()) for file in results.iterdir()}

    call.results = results
    return call


def test_each_figure_is_its_own_measurement(run):
    flat = run()["h200"]
    figures = {
        "ar_ms": 2.0, "round8_ms": 4.0, "verify60_1k_ms": 5.0, "verify60_8k_ms": 7.0, "draft_step_ms": 0.75,
        "decision_us": 3.5, "host_syncs_per_round": 0.1, "round_t1_over_t0": 128.0 / 32.0,
        "tree_attention_64_1k_us": 100.0, "tree_attention_64_4k_us": 101.0, "tree_attention_64_16k_us": 102.0,
        "tree_attention_16_4k_us": 103.0, "tree_attention_16_32k_us": 104.0, "topk_10x32000_us": 105.0,
        "topk_10x128256_us": 106.0, "lstm_step_us": 107.0, "sampling_60x128256_us": 108.0,
    }  # fmt: skip
    command = "pytest bench/kernels --benchmark-only; python -m bench.round --out round.json"
    assert flat == figures | {"commit": "abc1234", "command": command}


def test_the_files_beside_it_hold_every_row_and_the_commit(run, measured, report, capsys):
    written = run()
    assert set(written) == {"h200", "kernels_h200", "round_h200"}
    rows = written["kernels_h200"]["rows"]
    assert len(rows) == len(measured["benchmarks"]) == len(collect.KERNEL_KEYS) + 2
    assert rows["lstm_step[1x128-torch]"] == {"us": 900.0, "us_min": 900.0, "GB/s": 1.0, "device": "a card"}
    machine = {"hardware": "a card", "commit": "abc1234"}
    assert written["kernels_h200"]["machine"] == written["round_h200"]["machine"] == machine
    assert written["round_h200"] == report | {"machine": machine}
    assert json.loads(capsys.readouterr().out) == written["h200"]


@pytest.mark.parametrize("name", collect.KERNEL_KEYS.values())
def test_a_kernel_that_was_not_measured_is_named_and_nothing_is_written(run, measured, name):
    """pytest-benchmark leaves out what failed or was skipped."""
    measured["benchmarks"] = [item for item in measured["benchmarks"] if item["name"] != f"test_{name}"]
    with pytest.raises(KeyError) as error:
        run()
    assert error.value.args == (name,)
    assert list(run.results.iterdir()) == []


@pytest.mark.parametrize("missing", ["milliseconds", "decision_us", "syncs", "parts"])
def test_a_round_that_was_cut_off_is_no_result(run, report, missing):
    """`bench.round` saves what it has so far."""
    del report[missing]
    with pytest.raises(KeyError, match=missing):
        run()
    assert list(run.results.iterdir()) == []


def test_of_a_disturbed_row_the_median_stands_and_the_minimum_beside_it_tells(run, measured):
    """No measurement is replaced by a better one: what was seen is what is reported."""
    name = "topk_confidence[10x32000-triton]"
    at = next(i for i, item in enumerate(measured["benchmarks"]) if item["name"] == f"test_{name}")
    measured["benchmarks"][at] = kernel(name, 21.0, us_min=7.0)
    written = run()
    assert written["h200"]["topk_10x32000_us"] == 21.0
    assert written["kernels_h200"]["rows"][name]["us_min"] == 7.0


def test_the_repositorys_figures_are_those_of_its_files():
    kernels, report, flat = (
        json.loads((collect.RESULTS / f"{name}.json").read_text()) for name in ("kernels_h200", "round_h200", "h200")
    )
    flat.pop("note", None)  # of rows that were measured anew, later
    assert collect.flat_figures(kernels["rows"], report) == flat
