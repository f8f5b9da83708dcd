"""Cost tables: times by hand, what comes back from a file, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from radar.config import TreeConfig
from radar.tools.costs import CostTable

TABLE = CostTable(
    draft_call_seconds=(2.0, 1.0, 3.0, 1.0),
    nodes=(16, 64),
    contexts=(0, 100, 300),
    verify_seconds=((10.0, 20.0, 40.0), (30.0, 40.0, 60.0)),
    decision_seconds=0.5,
    rest_seconds=7.0,
    device="card",
    pair="a + b",
)
TREE = TreeConfig(total_tokens=16, tree_top_k=3, max_calls=4)


@pytest.mark.parametrize(
    ("calls", "context", "nodes", "expected"),
    [
        (1, 0, 16, 2 + 0.5 + 10 + 7),
        (3, 100, 16, 6 + 1.5 + 20 + 7),
        (4, 100, 16, 7 + 1.5 + 20 + 7),  # the last call is followed by no decision
        (1, 50, 16, 2 + 0.5 + 15 + 7),
        (1, 200, 64, 2 + 0.5 + 50 + 7),
        (1, 100, 40, 2 + 0.5 + 30 + 7),  # halfway between 16 and 64 nodes
        (1, 9000, 16, 2 + 0.5 + 40 + 7),  # past the last context: what the last one costs
    ],
)
def test_round_seconds_by_hand(calls: int, context: int, nodes: int, expected: float) -> None:
    tree = TreeConfig(total_tokens=nodes, tree_top_k=3, max_calls=4)
    seconds = TABLE.round_seconds(torch.tensor(calls), torch.tensor(context), tree)
    assert seconds.item() == pytest.approx(expected)


def test_times_of_all_stops() -> None:
    context = torch.tensor([0, 50, 300])
    times = TABLE.times(TREE, context)
    assert times.shape == (3, 4)
    for n in range(3):
        for call in range(4):
            one = TABLE.round_seconds(torch.tensor(call + 1), context[n], TREE)
            assert times[n, call].item() == pytest.approx(one.item())
    free = TABLE.without_decisions().times(TREE, context)
    torch.testing.assert_close(times - free, torch.tensor([0.5, 1.0, 1.5, 1.5]).double().expand(3, -1))


def test_the_papers_times() -> None:
    tree = TreeConfig(max_calls=8)
    times = CostTable.paper().times(tree, torch.tensor([5]))[0]
    for extra in range(8):  # T(k) = T_o + T_d k + T_p min(k + 1, 7)
        assert times[extra].item() == pytest.approx(0.07067 + 0.002684 * extra + 0.0004 * min(extra + 1, 7), rel=1e-6)


def test_a_tree_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="measured 4 draft calls, the tree allows 5"):
        TABLE.times(TreeConfig(total_tokens=16, max_calls=5), torch.tensor([0]))
    for nodes in (15, 65):
        with pytest.raises(ValueError, match=f"measured 16 to 64 nodes, the tree verifies {nodes}"):
            TABLE.times(TreeConfig(total_tokens=nodes, max_calls=4), torch.tensor([0]))


def test_a_tree_of_other_beams_is_refused_where_they_are_known() -> None:
    known = replace(TABLE, tree_top_k=3)
    assert torch.equal(known.times(TREE, torch.tensor([0])), TABLE.times(TREE, torch.tensor([0])))
    with pytest.raises(ValueError, match=r"with tree_top_k=3, the tree has 10: take the table of its beams \(in"):
        known.times(replace(TREE, tree_top_k=10), torch.tensor([0]))


def test_a_table_of_before_does_not_say_its_beams() -> None:
    values = replace(TABLE, tree_top_k=16).to_dict()
    assert CostTable.from_dict(values).tree_top_k == values.pop("tree_top_k") == 16
    assert CostTable.from_dict(values) == TABLE


def test_a_saved_table_comes_back(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json", device="card") == TABLE
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]
    assert CostTable.from_dict(TABLE.to_dict()) == TABLE


def test_a_table_of_another_device_is_refused_unless_asked(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "costs.json")
    with pytest.raises(ValueError, match="measured on 'card', this is 'other card'"):
        CostTable.load(tmp_path / "costs.json", device="other card")
    assert CostTable.load(tmp_path / "costs.json", device=None) == TABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a cost table"),
        ({"version": 2}, "version 2 is unknown"),
        ({"decision_seconds": -1}, "seconds must be finite times"),
        ({"rest_seconds": float("nan")}, "must be finite times"),
        ({"draft_call_seconds": []}, "is empty"),
        ({"draft_call_seconds": 3.0}, "must be a list"),
        ({"draft_call_seconds": [1.0, True]}, "an entry of draft_call_seconds must be of type float, got True"),
        ({"nodes": [64, 16]}, "nodes must be ascending"),
        ({"contexts": [0, 0, 1]}, "contexts must be ascending"),
        ({"verify_seconds": [[1.0, 2.0, 3.0]]}, "must be 2 rows of 3"),
        ({"verify_seconds": [1.0, 2.0]}, "an entry of verify_seconds must be a list"),
        ({"verify_seconds": [[1.0, 2.0, 3.0], [1.0, 2.0, float("inf")]]}, "must be finite times"),
        ({"device": ""}, "device must be a name"),
        ({"hardware": "x"}, "missing or unknown: hardware"),
        ({"pair": None}, "pair must be of type str"),
        ({"tree_top_k": "10"}, r"tree_top_k must be of type int \| None, got '10'"),
        ({"nodes": [16.5, 64]}, "an entry of nodes must be of type int"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(TABLE.to_dict() | change))
    with pytest.raises(ValueError, match=rf"c\.json.*{message}"):
        CostTable.load(tmp_path / "c.json", device=None)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no cost table"):
        CostTable.load(tmp_path / "none.json", device=None)
    text = json.dumps(TABLE.to_dict())
    (tmp_path / "c.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="cut off"):
        CostTable.load(tmp_path / "c.json", device=None)


def test_a_round_takes_time() -> None:
    with pytest.raises(ValueError, match="no time"):
        CostTable.constant(call=0.0, rest=0.0)
