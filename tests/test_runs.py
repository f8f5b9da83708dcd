"""Which runs of a comparison count."""

import json

from measured_runs import run

from bench.runs import cells_of, key_of, read_runs


def test_a_prompt_that_was_cut_off_is_left_out():
    runs = [run("radar", 0, 10, 1.0), run("eagle3", 0, 10, 1.0), run("radar", 1, 10, 1.0)]
    (kept,) = cells_of(runs, 0.0, "radar", "eagle3")
    assert {(one["method"], one["prompt"]) for one in kept} == {("radar", 0), ("eagle3", 0)}


def test_a_cell_is_one_pair_task_and_temperature_of_these_methods():
    runs = [
        run(method, 0, 10, 1.0, task=task, pair=pair, temperature=temperature)
        for method in ("radar", "eagle3", "ddd")
        for task in ("gsm8k", "mbpp")
        for pair in "ba"
        for temperature in (0.0, 1.0)
        if (method, pair, task) != ("eagle3", "a", "mbpp")  # whose turn never came
    ]
    cells = cells_of(runs, 1.0, "radar", "eagle3")
    assert [(cell[0]["pair"], cell[0]["task"]) for cell in cells] == [("a", "gsm8k"), ("b", "gsm8k"), ("b", "mbpp")]
    assert all({one["method"] for one in cell} == {"radar", "eagle3"} for cell in cells)
    assert {one["temperature"] for cell in cells for one in cell} == {1.0}


def test_a_torn_line_is_measured_again(tmp_path):
    file = tmp_path / "runs.jsonl"
    assert read_runs(file) == []
    lines = [json.dumps(run("radar", prompt, 10, 1.0)) + "\n" for prompt in range(2)]
    file.write_text(lines[0] + lines[1][:20])
    (kept,) = read_runs(file)
    assert key_of(kept) == ("a", "gsm8k", 0.0, "radar", 0)
    assert file.read_text() == lines[0]
