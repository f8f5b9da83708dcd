"""Recorded rounds: read from one folder or several, split, cut, joined."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounds_files import FULL, HEADER, TREE, prompt_rounds, store, write

from radar.config import TreeConfig
from radar.replay.recording import read_rounds, shard_files
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.twins import fingerprint


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recorded rounds in .*none: record them with"):
        read_rounds(tmp_path / "none")
    recording = write(tmp_path / "empty", range(0))
    recording.add(0, prompt_rounds(0, rounds=0))
    recording.flush()
    for empty in (tmp_path / "empty", [tmp_path / "empty"] * 2):
        with pytest.raises(ValueError, match=r"no round in .*empty: its texts were too short"):
            read_rounds(empty)
    write(tmp_path / "full", range(1))
    assert len(read_rounds([tmp_path / "empty", tmp_path / "full"])) == 3


def test_several_recordings_are_renumbered(tmp_path: Path) -> None:
    write(tmp_path / "a", range(2))
    write(tmp_path / "b", range(2, 4))
    data = read_rounds([tmp_path / "a", tmp_path / "b"])
    assert data.prompt.unique().tolist() == [0, 1, 4, 5]
    assert torch.equal(data.prompts[5], prompt_rounds(3).prompts[3])


def test_rounds_given_twice_are_refused(tmp_path: Path) -> None:
    """Under one name, another name, or as another folder: they would count as those of other prompts."""
    a, b, copy, link = (tmp_path / name for name in ("a", "b", "copy", "link"))
    write(a, range(2))
    write(copy, range(2))
    link.symlink_to(a)
    write(b, range(2, 4))
    for again in (a, str(a), copy, link):
        with pytest.raises(ValueError, match=rf"{Path(again).name} holds the rounds of .*a: give them once"):
            read_rounds([a, b, again])
    assert len(read_rounds([a, b])) == 12


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (RoundsHeader(TREE, 1.0, {"target": "t"}), r"b is of another kind than .*a \(temperature 1\.0, not 0\.0"),
        (RoundsHeader(TREE, 0.0, {"target": "u"}), "target 'u', not 't'"),
        (RoundsHeader(TREE, 0.0, {"target": "t", "draft": "e"}), "draft 'e', not 'd'"),
        (RoundsHeader(TREE, 0.0, every_token=True), "every_token True, not False"),
        (RoundsHeader(replace(TREE, total_tokens=9)), "total_tokens 9, not 12"),
        (RoundsHeader(TREE, 0.0, {"target": "t", "seed": 4}), None),
        (RoundsHeader(TREE, 0.0), None),
    ],
)
def test_recordings_of_another_source_are_not_merged(tmp_path: Path, header: RoundsHeader, message: str | None) -> None:
    write(tmp_path / "a", range(2), replace(HEADER, metadata={"target": "t", "draft": "d"}))
    write(tmp_path / "b", range(2, 4), header)
    if message is None:
        assert len(read_rounds([tmp_path / "a", tmp_path / "b"])) == 12
        return
    with pytest.raises(ValueError, match=message):
        read_rounds([tmp_path / "a", tmp_path / "b"])


def test_shards_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", range(2))
    write(tmp_path / "b", range(1, 3))
    write(tmp_path / "c", range(5, 7), FULL)
    messages = {"b": "prompt 1 is in another shard too", "c": "is of another recording than .*temperature 1.0, not 0.0"}
    for other, message in messages.items():
        (file,) = shard_files(tmp_path / other)
        copy = tmp_path / "a" / "prompts-000009.safetensors"
        copy.write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=message):
            read_rounds(tmp_path / "a")
        copy.unlink()
    assert len(read_rounds(tmp_path / "a")) == 6


def test_twenty_thousand_rounds_take_seconds(tmp_path: Path) -> None:
    header, count = RoundsHeader(TreeConfig()), 20_000
    scores = -torch.rand(count, 16, 10).cumsum(-1)
    numbers = torch.arange(count) // 100
    lengths = torch.zeros(count, 16, dtype=torch.int64)
    known = {n: fingerprint(f"a b c {n}") for n in range(200)}
    data = RoundDataset(scores, lengths, numbers, torch.arange(count), header, prompts=known)
    store(tmp_path / "r", data, range(200))
    start = time.perf_counter()
    assert read_rounds(tmp_path / "r").fingerprint() == data.fingerprint()
    assert time.perf_counter() - start < 10  # a tenth of a second here; the bound catches a quadratic reader


def test_split_keeps_prompts_together(tmp_path: Path) -> None:
    write(tmp_path / "r", range(10))
    data = replace(read_rounds(tmp_path / "r"), prompts={})
    rest, held = data.split_by_prompt(0.3, seed=1)
    assert set(rest.prompt.tolist()).isdisjoint(held.prompt.tolist())
    assert (len(rest), len(held)) == (21, 9)
    assert held.fingerprint() == data.split_by_prompt(0.3, seed=1)[1].fingerprint()
    assert held.fingerprint() != data.split_by_prompt(0.3, seed=2)[1].fingerprint()
    assert len(data.split_by_prompt(0.001)[1]) == 3
    assert len(data.split_by_prompt(0.999)[0]) == 3
    with pytest.raises(ValueError, match="two unlike prompts"):
        data.select(data.prompt == 1).split_by_prompt(0.5)


def test_split_keeps_near_twins_together(tmp_path: Path) -> None:
    """Ten prompts, five questions: what chooses a checkpoint must not be what it was trained on in other words."""
    write(tmp_path / "r", range(10))
    texts = [f"write a function that returns the number {'abcde'[n // 2]} of {'xy'[n % 2]}" for n in range(10)]
    unlike = [" ".join(f"{word}{n // 2}" for word in text.split()) for n, text in enumerate(texts)]
    data = replace(read_rounds(tmp_path / "r"), prompts={n: fingerprint(text) for n, text in enumerate(unlike)})
    for seed in range(5):
        for part in data.split_by_prompt(0.4, seed):
            prompts = set(part.prompt.tolist())
            assert all(prompt ^ 1 in prompts for prompt in prompts)
            assert set(part.prompts) == prompts
    same = replace(data, prompts=dict.fromkeys(range(10), fingerprint(texts[0])))
    with pytest.raises(ValueError, match="two unlike prompts or more, found 1"):
        same.split_by_prompt(0.5)


def test_truncate_and_expectations(tmp_path: Path) -> None:
    write(tmp_path / "r", header=FULL)
    data = read_rounds(tmp_path / "r")
    assert data.distribution is not None
    mean = (data.distribution * torch.arange(5)).sum(-1)
    torch.testing.assert_close(data.expected_accept(), mean)
    short = data.truncate(2)
    assert short.distribution is not None
    assert (short.scores.shape, short.header.tree.max_calls) == ((12, 2, 3), 2)
    assert short.distribution.shape == (12, 2, 3)
    torch.testing.assert_close(short.distribution.sum(-1), torch.ones(12, 2))
    torch.testing.assert_close(short.expected_accept(), mean[:, :2])
    with pytest.raises(ValueError, match="max_calls=4, cannot replay 5"):
        data.truncate(5)


def test_parts_that_do_not_fit_are_named() -> None:
    good = prompt_rounds(0, FULL)
    for name, part in good.tensors().items():
        with pytest.raises(ValueError, match=rf"RoundDataset: {name} must be"):
            RoundDataset.of({**good.tensors(), name: part[..., None]}, FULL, {})


def test_rounds_of_some_prompts_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "r")
    data = read_rounds(tmp_path / "r")
    left = data.select(data.prompt % 2 == 0)
    assert left.prompt.unique().tolist() == list(left.prompts) == [0, 2]
    changed = left.scores.clone()
    changed[0, 0, 0] -= 1
    assert replace(left, scores=changed).fingerprint() != left.fingerprint()
