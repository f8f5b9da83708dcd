"""Cost tables by rows: one file, or that of one row; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from radar.tools.batch_costs import BatchCosts
from radar.tools.costs import CostTable

ONE = CostTable(
    draft_call_seconds=(2.0, 1.0), nodes=(16, 64), contexts=(100,), verify_seconds=((10.0,), (30.0,)),
    decision_seconds=0.5, rest_seconds=7.0, device="card", pair="a + b",
)  # fmt: skip
EIGHT = replace(ONE, draft_call_seconds=(3.0, 2.0), nodes=(16, 128))
COSTS = BatchCosts(tables={8: EIGHT, 1: ONE}, plain_seconds={1: 4.0, 8: 5.0})


def test_a_saved_file_comes_back(tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]
    found = BatchCosts.load(tmp_path / "costs.json", device="card")
    assert found == COSTS
    assert (found.of(1), found.of(8)) == (ONE, EIGHT)
    with pytest.raises(
        ValueError, match=r"of 1, 8 rows, not of 4: measure with `radar profile --batch 1 4 8 --costs FILE`"
    ):
        found.of(4)


def test_a_table_of_one_row_is_read_as_before(tmp_path: Path) -> None:
    ONE.save(tmp_path / "costs.json")
    found = BatchCosts.load(tmp_path / "costs.json", device="card")
    assert found == BatchCosts(tables={1: ONE}, plain_seconds={})
    with pytest.raises(ValueError, match="of 1 rows, not of 2"):
        found.of(2)


def test_tables_of_another_device_are_refused_unless_asked(tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    with pytest.raises(ValueError, match="measured on 'card', this is 'other'"):
        BatchCosts.load(tmp_path / "costs.json", device="other")
    assert BatchCosts.load(tmp_path / "costs.json", device=None) == COSTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 is unknown"),
        ({"batches": []}, "needs tables by rows"),
        ({"batches": 8}, "batches must be a list"),
        ({"batches": [{"rows": 8, "costs": {}}]}, "batches must be a list of {rows, plain_seconds, costs}"),
        ({"rows": True}, "batches must be a list"),
        ({"rows": 0}, "needs tables by rows, 1 or more, got \\[0, 8\\]"),
        ({"rows": 8}, "a number of rows has two tables"),
        ({"plain_seconds": -1.0}, "times of 0 or more"),
        ({"plain_seconds": float("nan")}, "times of 0 or more"),
        ({"plain_seconds": "4"}, "batches must be a list"),
        ({"costs": ONE.to_dict() | {"rest_seconds": -1}}, "1 rows: CostTable: seconds must be finite"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What the file says, or its first batch."""
    file = tmp_path / "c.json"
    COSTS.save(file)
    values = json.loads(file.read_text())
    part = values if change.keys() <= values.keys() else values["batches"][0]
    part |= change
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"c\.json.*{message}"):
        BatchCosts.load(file, device=None)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no cost table"):
        BatchCosts.load(tmp_path / "none.json", device=None)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="cut off"):
        BatchCosts.load(tmp_path / "c.json", device=None)
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ValueError, match="not a cost table"):
        BatchCosts.load(tmp_path / "c.json", device=None)
