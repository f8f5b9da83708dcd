"""Rounds of a small pair, recorded in shares, and what a round of the wide pair costs."""

import time

import pytest
import torch
from laboratory import SHAPES, make_laboratory

from bench.lab import record
from bench.lab.pairs import Wide, measure_costs
from bench.lab.sets import rounds_of
from radar import TreeConfig
from radar.tools.prompts import PromptLine


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make_laboratory(tmp_path_factory.mktemp("lab"))


def test_shares_record_their_prompts_and_stop_in_time(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "TREE", TreeConfig(max_calls=3, total_tokens=12))
    sets = {name: [PromptLine(f"{name} {n}", False) for n in range(2)] for name in ("train", "gsm8k")}

    def share(index, seconds=100.0):
        return record.record_share(lab / "pair", tmp_path / "rounds", sets, [0.0], 8, 100, seconds, (index, 2))

    assert share(0)
    with pytest.raises(FileNotFoundError, match="record them first"):
        rounds_of(tmp_path / "rounds", "mbpp", 0.0)
    assert len(rounds_of(tmp_path / "rounds", "gsm8k", 0.0).prompt.unique()) == 1
    assert not share(1, seconds=-1.0)
    assert share(1)
    train, judged = (rounds_of(tmp_path / "rounds", name, 0.0) for name in ("train", "gsm8k"))
    assert len(judged.prompt.unique()) == 2
    assert judged.header.every_token
    assert not train.header.every_token
    assert {rounds_of(tmp_path / "rounds", "gsm8k", 0.0, n).header.tree.total_tokens for n in (32, 100)} == {32, 100}
    with pytest.raises(ValueError, match="another number of shares"):
        record.record_share(lab / "pair", tmp_path / "rounds", sets, [0.0], 8, 100, time.monotonic(), (0, 3))


def test_costs_are_of_every_tree_and_context(lab):
    wide = Wide(lab / "pair", SHAPES["llama"], device=torch.device("cpu"), max_length=64)
    trees = [TreeConfig(total_tokens=8, max_calls=2), TreeConfig(total_tokens=12, max_calls=3)]
    table = measure_costs(wide, trees, contexts=(8, 32), name="llama", repeats=1)
    assert (table.nodes, table.contexts) == ((8, 12), (8, 32))
    assert len(table.draft_call_seconds) == 3
    assert [len(row) for row in table.verify_seconds] == [2, 2]
    assert min(min(row) for row in table.verify_seconds) > 0
