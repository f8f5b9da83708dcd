"""Rounds in batches: the engine's rule, nodes of all rows by rank, rows that go along their texts; by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cliff_rounds import COSTS, WIDTH, make_rounds
from fakes import tiny_draft, tiny_target
from rounds_files import store

from radar import FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.cli.main import main
from radar.engine.steps import FEW
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.replay.record import record
from radar.replay.recording import read_rounds
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.batch_costs import BatchCosts
from radar.tools.batch_rounds import LIMITED, accepted, batch_calls, judge_batch, replay_batch
from radar.tools.costs import CostTable
from radar_kernels import batch_stop

NONE = -torch.inf
TABLE = CostTable(
    draft_call_seconds=(2.0, 1.0, 1.0, 1.0), nodes=(4, 8), contexts=(0,), verify_seconds=((10.0,), (20.0,)),
    decision_seconds=0.0, rest_seconds=3.0, device="any", pair="any",
)  # fmt: skip


def with_paths(data: RoundDataset) -> RoundDataset:
    """Where the text goes: along the best node of every level, as far as it was accepted."""
    there = torch.arange(1, data.scores.shape[1] + 1) <= data.accept_lengths[:, -1:]
    return replace(data, path=data.scores[..., 0].masked_fill(~there, NONE))


def rounds(paths: list[list[float]], *, prompt: list[int], every_token: bool = False) -> RoundDataset:
    """Two beam nodes a level: the text's own, where there is one, and one that is hardly likely."""
    path = torch.tensor(paths)
    scores = torch.stack((path.clamp(min=-9.0), torch.full_like(path, -9.5)), -1).sort(-1, descending=True).values
    lengths = torch.minimum((path > NONE).sum(1, keepdim=True), torch.arange(1, path.shape[1] + 1))
    tree = TreeConfig(tree_top_k=2, max_calls=path.shape[1], total_tokens=4)
    header, number = RoundsHeader(tree, every_token=every_token), torch.tensor(prompt)
    position = torch.cat([torch.arange(prompt.count(one)) for one in dict.fromkeys(prompt)])
    return RoundDataset(scores, lengths, number, position, header, path=path)


def test_a_batch_drafts_as_the_engine_does() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 3, 4, 8, 32):
        stops = torch.randint(1, 7, (50, rows), generator=generator)
        calls, made = batch_calls(stops)
        for wanted, each, all_rows in zip(stops, calls, made, strict=True):
            alive, active, count, of_row = torch.ones(rows).bool(), torch.ones(rows).bool(), 0, torch.zeros(rows).long()
            while alive.any():
                count += 1
                of_row[alive] = count
                stop = wanted <= count
                alive = batch_stop(stop, alive, active, few=FEW) ^ True if rows > 1 else ~stop
            assert (each.tolist(), int(all_rows)) == (of_row.tolist(), count)


def test_nodes_go_to_the_best_of_all_rows() -> None:
    """Row 0 is sure of four levels, row 1 of nothing: six nodes are two roots and four draft tokens."""
    path = torch.tensor([[[-0.1, -0.2, -0.3, -0.4], [-2.0, -4.0, -6.0, -8.0]]])
    scores = torch.stack((path, torch.full_like(path, -9.0)), -1)
    calls = torch.tensor([[4, 4]])
    assert accepted(scores, path, calls, nodes=6, ranked=True).tolist() == [[4, 0]]
    assert accepted(scores, path, calls, nodes=6, ranked=False).tolist() == [[2, 2]]
    assert accepted(scores, path, calls, nodes=8, ranked=True).tolist() == [[4, 2]]
    assert accepted(scores, path, torch.tensor([[1, 4]]), nodes=6, ranked=True).tolist() == [[1, 3]], "drafted alone"
    left = path.masked_fill(torch.tensor([[[0, 0, 1, 1], [1, 1, 1, 1]]]).bool(), NONE)
    few = torch.tensor([[4, 1]])  # fewer candidates than room
    assert accepted(scores, left, few, nodes=256, ranked=True).tolist() == [[2, 0]], "where the text goes elsewhere"
    assert accepted(scores, path, calls, nodes=256, ranked=False).tolist() == [[4, 4]], "more nodes than candidates"


def test_paths_are_recorded_as_the_tree_has_them(tmp_path: Path) -> None:
    """As many nodes as a beam are always the beams': cut to them a row accepts just what was recorded."""
    tree = TreeConfig(total_tokens=4, tree_top_k=3, max_calls=4)
    target, draft = tiny_target(vocab_size=6), tiny_draft(vocab_size=6, draft_vocab_size=5)
    decoder = RadarDecoder(target, draft=draft, policy=FixedDepth(4), tree=tree, max_length=120, engine="eager")
    record(decoder, [[3, 1, 4], [1, 5, 2]], tmp_path / "r", max_new_tokens=60, progress=False)
    data = read_rounds(tmp_path / "r")
    assert data.path is not None
    for calls in range(1, 5):
        found = accepted(
            data.scores[:, None], data.path[:, None], torch.full((len(data), 1), calls), nodes=4, ranked=True
        )
        assert torch.equal(found[:, 0], data.accept_lengths[:, calls - 1])
    assert data.accept_lengths.any(), "nothing was accepted, so nothing was tested"
    assert torch.equal(data.truncate(2).path, data.path[:, :2])


def test_tokens_and_seconds_by_hand() -> None:
    """Calls, decisions and a verification are paid for once, whatever the rows, and bring the tokens of all of them."""
    same = rounds([[-0.1, -0.2, -0.3, -0.4]], prompt=[0])
    one = replay_batch(torch.tensor([4]), same, TABLE, rows=2, nodes=8)
    assert (one.draft_calls, one.mean_acceptance_length) == (4, 1 + 3)  # the six best of eight: three of each row
    assert one.tokens_per_time == pytest.approx(2 * 4 / (2 + 3 * 1 + 20 + 3))
    cut = replay_batch(torch.tensor([4]), same, TABLE, rows=2, nodes=4)
    assert cut.tokens_per_time == pytest.approx(2 * 2 / (2 + 3 * 1 + 10 + 3))
    assert one.stop_histogram == (0, 0, 0, one.rounds)
    paid = replay_batch(torch.tensor([2]), same, replace(TABLE, decision_seconds=0.5), rows=2, nodes=8)
    assert paid.tokens_per_time == pytest.approx(2 * 3 / (2 + 1 + 2 * 0.5 + 20 + 3))


def test_rows_go_along_their_texts() -> None:
    """At even positions two tokens are gained, at odd ones five, but a row never comes there."""
    paths = [[-0.1, NONE, NONE, NONE] if n % 2 == 0 else [-0.1, -0.2, -0.3, -0.4] for n in range(10)]
    data = rounds(paths, prompt=[0] * 10, every_token=True)
    assert replay_batch(torch.full((10,), 4), data, TABLE, rows=2, nodes=8).mean_acceptance_length == 2
    once = replace(data, header=replace(data.header, every_token=False))
    mean = replay_batch(torch.full((10,), 4), once, TABLE, rows=1, nodes=8).mean_acceptance_length
    assert mean == pytest.approx(3.5, rel=0.01)  # 12 rounds of 10 are whole texts, 8 begin one
    gap = data.select(torch.tensor([0, 1, 2, 4, 5]))
    with pytest.raises(ValueError, match="none may be left out"):
        replay_batch(torch.full((5,), 4), gap, TABLE, rows=1, nodes=8)


def test_what_does_not_fit_is_refused() -> None:
    data = rounds([[-0.1, -0.2, -0.3, -0.4]], prompt=[0])
    with pytest.raises(ValueError, match="record them again"):
        replay_batch(torch.tensor([4]), replace(data, path=None), TABLE, rows=2, nodes=8)
    with pytest.raises(ValueError, match="4 rows need 8 nodes or more"):
        replay_batch(torch.tensor([4]), data, TABLE, rows=4, nodes=4)
    with pytest.raises(ValueError, match="8 nodes at most"):
        judge_batch({}, data, data, TABLE, rows=8)
    with pytest.raises(ValueError, match="names of their own, got 'fixed depth'"):
        judge_batch({"fixed depth": Threshold()}, data, data, TABLE, rows=2)


def test_choices_are_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts go four levels deep, and what of that two rows can verify is known."""
    monkeypatch.setattr("radar.tools.batch_rounds.STEPS", 4)
    data, costs = rounds([[-0.1, -0.2, -0.3, -0.4]] * 3, prompt=[0, 1, 2]), replace(TABLE, decision_seconds=0.5)

    def speed(calls: int, nodes: int, decision: float) -> float:
        seconds = 2 + (calls - 1) + decision * min(calls, 3) + {4: 10, 8: 20}[nodes] + 3
        return 2 * (1 + min(calls, nodes // 2 - 1)) / seconds

    free, paid = ({(c, n): speed(c, n, price) for c in range(1, 5) for n in (4, 8)} for price in (0.0, 0.5))
    found = {one.name: one for one in judge_batch({"never": Threshold(0.0)}, data, data, costs, rows=2)}
    for name, speeds in (("fixed depth", free), (LIMITED.format("never"), paid)):
        one = found[name]
        assert (one.value, one.nodes) == max(speeds, key=lambda key: speeds[key])
        assert one.result.tokens_per_time == pytest.approx(max(speeds.values()))
    assert found["never"].result.draft_calls == 4


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("radar.tools.batch_rounds.STEPS", 2)
    store(tmp_path / "r", with_paths(make_rounds(80)), range(10))
    save_policy(PolicyNetwork(WIDTH, 8), "policy")
    tables = {1: COSTS, 4: replace(COSTS, nodes=(8, 256))}
    BatchCosts(tables=tables, plain_seconds={4: 2.0}).save("costs.json")
    words = ["evaluate", "--rounds", "r", "--costs", "costs.json", "--any-device", "--policy", "mine=policy"]
    assert main([*words, "--batch", "4", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["rows"] for one in found["batches"]] == [1] * 5 + [4] * 5
    assert found["plain_tokens_per_second"] == {"4": 2.0}
    assert main([*words, "--batch", "4"]) == 0
    assert "mine, at most so many calls" in capsys.readouterr().out
    assert main([*words, "--batch", "8"]) == 2
    assert "of 1, 4 rows, not of 8: measure with `radar profile --batch 1 4 8" in capsys.readouterr().err
    assert main([*words[:3], "--batch", "8", "--costs", "paper-3090"]) == 2
    assert "radar profile --batch 1 2 4 8 16 32" in capsys.readouterr().err
