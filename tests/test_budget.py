"""What rounds of several rows are cut to, and that the decoder's docstring says so."""

import re

import pytest

from radar import RadarDecoder
from radar.engine import budget


def test_the_decoders_docstring_tells_the_bounds_of_calls() -> None:
    told = re.sub(r"\s+", " ", RadarDecoder.__doc__ or "")
    four, eight, sixteen = map(
        int,
        re.findall(r"of 4 texts makes at most (\d+) draft calls, of 8 at most (\d+), of 16 and more (\d+)", told)[0],
    )
    assert [budget.calls_of(rows) for rows in (4, 8, 16, 32)] == [four, eight, sixteen, sixteen]
    assert budget.calls_of(2) >= 16, "two rows are as deep as their trees"


@pytest.mark.parametrize(("rows", "nodes"), [(1, 60), (2, 64), (8, 64), (16, 64), (31, 64), (32, 128)])
def test_rows_share_their_nodes(rows: int, nodes: int) -> None:
    assert budget.nodes_of(60, rows) == nodes
    assert budget.nodes_of(2, rows) == 2 * rows, "a tree has no more than its own"
