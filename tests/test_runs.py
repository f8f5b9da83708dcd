"""Which runs of a comparison count."""

import json

from measured_runs import run

from bench.runs import AUTOREGRESSIVE, cells_of, equal_texts, key_of, read_runs


def test_a_prompt_that_was_cut_off_is_left_out():
    runs = [run("radar", 0, 10, 1.0), run("eagle3", 0, 10, 1.0), run("radar", 1, 10, 1.0)]
    (kept,) = cells_of(runs).values()
    assert {(one["method"], one["prompt"]) for one in kept} == {("radar", 0), ("eagle3", 0)}


def test_a_cell_without_a_whole_prompt_is_no_cell():
    """Two methods of the first prompt are there, and RADAR's turn never came."""
    cut = [run(AUTOREGRESSIVE, 0, 60, 12.0, task="mbpp"), run("eagle3", 0, 60, 5.0, task="mbpp")]
    assert cells_of(cut) == {}


def test_texts_that_parted_are_left_out_of_the_sensitivity_check():
    runs = [run("radar", prompt, 10, 1.0, text=text) for prompt, text in enumerate(["same", "other", "same"])]
    runs += [run("eagle3", prompt, 10, 2.0) for prompt in range(2)]  # its third text is not there
    runs += [run("threshold", prompt, 10, 2.0, text="other") for prompt in range(3)]
    kept = equal_texts(runs, "radar", "eagle3")
    assert [(one["method"], one["prompt"]) for one in kept] == [("radar", 0), ("eagle3", 0)]


def test_a_torn_line_is_measured_again(tmp_path):
    file = tmp_path / "runs.jsonl"
    assert read_runs(file) == []
    lines = [json.dumps(run("radar", prompt, 10, 1.0)) + "\n" for prompt in range(2)]
    file.write_text(lines[0] + lines[1][:20])
    (kept,) = read_runs(file)
    assert key_of(kept) == ("a", "gsm8k", 0.0, "radar", 0)
    assert file.read_text() == lines[0]
