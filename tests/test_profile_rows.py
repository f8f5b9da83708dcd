"""Rounds of several rows, timed; and the command that writes a table for each number of them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.cli.main import main
from radar.engine.steps import RoundSteps
from radar.tools.batch_costs import BatchCosts
from radar.tools.profile_rows import batch_costs, nodes_to_time, profile_rows

COMMAND = [
    *("profile", "--repeats", "1", "--total-tokens", "8", "--max-calls", "2", "--prefix", "9"),
    *("--max-length", "64", "--device", "cpu"),
]


def decoder(rows: int = 3) -> RadarDecoder:
    return RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TreeConfig(total_tokens=12, max_calls=5),
        max_length=100, max_batch_size=rows, engine="eager", fallback=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "total", "expected"),
    [
        (1, 60, [16, 32, 60]),
        (2, 60, [16, 32, 64, 120]),
        (3, 60, [15, 30, 63, 126, 180]),
        (8, 60, [16, 32, 64, 128, 192, 256]),
        (32, 60, [64, 128, 192, 256]),
        (32, 2, [64]),
    ],
)
def test_nodes_that_rows_can_verify(rows: int, total: int, expected: list[int]) -> None:
    assert nodes_to_time(rows, total) == expected
    assert nodes_to_time(rows, total, [1]) == [2 * rows]


def test_every_part_gets_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that the parts move, by the rows that take part and the nodes that are verified."""
    engine, now = decoder().engine, [0.0]
    takes = {"stop": 1, "select": 2, "step": 3, "begin": 5, "accept": 7, "commit": 11, "plain": 13}

    def timed(name: str) -> Any:
        part = getattr(RoundSteps, name)

        def run(self: RoundSteps, *args: Any) -> Any:
            rows = len(self.active)
            assert self.active.tolist() == [True] * rows, "a row without a text"
            milliseconds = self.config.total_tokens * rows if name == "verify" else rows * takes[name]
            now[0] += milliseconds / 1000
            return part(self, *args)

        return run

    for name in [*takes, "verify"]:
        monkeypatch.setattr(RoundSteps, name, timed(name))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = list(profile_rows(engine, rows=2, nodes=[8, 20], prefixes=[30, 60], repeats=2))
    assert [(one.nodes, one.prefix, one.verify) for one in found] == [
        (8, 30, pytest.approx(8)), (8, 60, pytest.approx(8)), (20, 30, pytest.approx(20)), (20, 60, pytest.approx(20)),
    ]  # fmt: skip
    deep = found[0]
    assert deep.draft_calls == pytest.approx((10, 6, 6, 6, 6))
    assert {len(one.draft_calls) for one in found[1:]} == {2}
    assert (deep.decision, deep.select, deep.accept, deep.commit, deep.plain) == pytest.approx((2, 4, 14, 22, 26))
    costs = batch_costs({2: found}, device="card", pair="a + b")
    table = costs.of(2)
    assert table.draft_call_seconds == pytest.approx((0.010, 0.006, 0.006, 0.006, 0.006))
    assert (table.nodes, table.contexts) == ((8, 20), (30, 60))
    assert (table.decision_seconds, table.rest_seconds) == pytest.approx((0.002, 0.040))
    assert costs.plain_seconds == {2: pytest.approx(0.026)}


def test_decoding_is_right_after_profiling() -> None:
    ours = decoder()
    prompts = [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8]]
    assert len(list(profile_rows(ours.engine, rows=3, nodes=[6, 36], prefixes=[100], repeats=1))) == 2
    texts = ours.generate(prompts, max_new_tokens=20)
    assert [text.token_ids for text in texts] == [hf_greedy(tiny_target(), prompt, 20) for prompt in prompts]


@pytest.mark.parametrize(
    ("rows", "prefix", "repeats", "message"),
    [(4, 9, 1, "rows must be from 1 to 3"), (0, 9, 1, "rows"), (2, 101, 1, "prefix must be"), (2, 9, 0, "repeats")],
)
def test_what_does_not_fit_is_refused(rows: int, prefix: int, repeats: int, message: str) -> None:
    ours = decoder()
    with pytest.raises(ValueError, match=message):
        list(profile_rows(ours.engine, rows=rows, nodes=[2 * rows], prefixes=[prefix], repeats=repeats))
    assert not ours.engine.steps.active.any()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"
    assert main([*COMMAND, "--batch", "2", "1", "--costs", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "rounds: 100%" in err
    assert "first draft call [ms]" in out
    costs = BatchCosts.load(file, device=None)
    assert {rows: costs.of(rows).nodes for rows in (1, 2)} == {1: (8,), 2: (16,)}
    assert len(costs.of(2).draft_call_seconds) == 2
    assert costs.plain_seconds.keys() == {1, 2}
    assert main([*COMMAND, "--batch", "2", "--nodes", "4", "9", "--no-progress", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [(one["rows"], one["nodes"]) for one in json.loads(out)["profiles"]] == [(2, 4), (2, 8)]


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--batch", "2", "--trace", str(tmp_path / "t.json")], "--trace shows the rounds of one text"),
        (["--batch", "33"], "an integer from 1 to 32, got 33"),
        (["--batch", "0"], "--batch"),
    ):
        try:
            status = main([*COMMAND, *words])
        except SystemExit as exit:
            status = exit.code  # type: ignore[assignment]
        assert status == 2
        assert message in capsys.readouterr().err
