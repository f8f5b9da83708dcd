"""Tables and plots of the result files."""

import json

import pytest
from measured_runs import choices, full_runs, predictions

from bench import report, tables
from bench.summary import summarise

MACHINE = {"hardware": "a card", "commit": "abc"}


@pytest.fixture
def results(tmp_path):
    """Small files of every kind."""
    part = {"prefix": 1024, "verify": 4.0, "draft_calls": [0.5, 0.25, 0.25], "decision": 0.1, "select": 0.1}
    part |= {"accept": 0.1, "commit": 0.1}
    row = {"cells": 4, "draft_calls": 8.0, "mean_acceptance_length": 3.0}
    policies = {"EAGLE-3 (8 calls)": row | {"over_eagle3": 1.0}, "hindsight oracle": row | {"over_eagle3": 1.5}}
    files = {
        "end_to_end/end_to_end_h200": {
            **summarise(full_runs(), {}, predictions()),
            "pairs": choices(),
            "generate": {"a": {"static": {"tokens_per_second": 3.0}}},
        },
        "replay/contenders": {"overall": {"0": policies, "1": policies}, "pairs": {"a": {}}},
        "round/round_h200": {"parts": [part]},
    }
    for name, record in files.items():
        file = tmp_path / f"{name}.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"command": f"python -m {name}", "machine": MACHINE, **record}))
    return tmp_path


def test_the_report_shows_what_is_there(results):
    (results / "replay" / "contenders.json").unlink()
    assert tables.write_tables(results) == [
        "End to end, the embedded pair at large shapes: no end_to_end/end_to_end_embedded_h200.json",
        "Rules of the literature, by replay: no replay/contenders.json",
    ]
    text = (results / "report.md").read_text()
    assert "| a | 0 | 3 | 5 | 12 | 13 | 15 | 14 | 17 |" in text  # two tasks together: 360 tokens in 24 or 21 seconds
    figures = "2.40 (60) | 2.50 (100) | 2.93 (32) | 2.73 (60) | 3.00 (100)"
    assert f"| a gsm8k T=0 | 3 | 5 | {figures} | 1.250 (1.250 to 1.250) | 3 of 3 |" in text
    assert "| EAGLE-3, 8 calls | 1.443 (1.443 to 1.443) | 1.443 (1.443 to 1.443), 6 |" in text
    assert "Draft calls -25.0%" in text
    assert "Nodes verified: RADAR 100; threshold 32; EAGLE-3, 8 calls 60." in text
    assert "drawn once for all pairs" in text
    assert "| 1,024 tokens | decisions | 0.300 | 5.4% |" in text
    assert "python -m round/round_h200" in text
    assert "| 15 to 16 | 2 | 1.443 | 1.386 | 1.184 | 1.270 |" in text  # 5 / 4 and 5 / 3; 4.8, 4.1 and 4.4 over the same


def test_intervals_of_cells_that_were_drawn_by_themselves_say_so(results):
    file = results / "end_to_end" / "end_to_end_h200.json"
    record = json.loads(file.read_text())
    del record["intervals"]  # as in files whose runs were not kept
    file.write_text(json.dumps(record))
    tables.write_tables(results)
    assert "too narrow where pairs share prompts" in (results / "report.md").read_text()


def test_oracles_are_named_as_what_they_are(results):
    tables.write_tables(results)
    text = (results / "report.md").read_text()
    assert (
        text.count("\n\nTemperature 1, 4 cells of a, trees of 60 nodes:\n\n") == 1
    )  # a blank line ends the table above
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| hindsight", "| EAGLE-3 (8"))]
    assert [row[0].strip("| ") for row in rows] == 2 * [
        "hindsight (a bound that needs the future)",
        "EAGLE-3 (8 calls)",
    ]


def test_the_figure_is_of_equal_texts_alone(results):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    file = results / "end_to_end" / "embedded_tasks_cpu.json"
    metrics = {"stop_histogram": {"2": 3, "9": 1}, "draft_calls_per_round": 3.75, "mean_acceptance_length": 2.0}
    rows = [{"name": name, "metrics": metrics} for name in ("EAGLE-3", "RADAR")]
    file.write_text(json.dumps({task: {"identical": True, "rows": rows} for task in tables.TASKS}))
    left, _ = report.plot_embedded(results, pyplot).axes
    assert [line.get_ydata()[1] for line in left.lines[: len(tables.TASKS)]] == 4 * [75.0]
    record = json.loads(file.read_text())
    record["mbpp"]["identical"] = False
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="mbpp were not identical"):
        report.plot_embedded(results, pyplot)


def test_the_repositorys_report_is_that_of_its_files(tmp_path):
    before = (tables.RESULTS / "report.md").read_text()
    for file in tables.RESULTS.rglob("*.json"):
        copy = tmp_path / file.relative_to(tables.RESULTS)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert tables.write_tables(tmp_path) == []
    assert (tmp_path / "report.md").read_text() == before


def test_every_result_file_has_its_line():
    """At most 35 files, and a README that says what each of them is."""
    files = {str(file.relative_to(tables.RESULTS)) for file in tables.RESULTS.rglob("*") if file.is_file()}
    assert len(files) <= 35
    text = (tables.RESULTS / "README.md").read_text()
    assert [name for name in sorted(files - {"README.md"}) if f"`{name}`" not in text] == []
