"""Recorded rounds: what is written is read, and nothing that is not of their kind."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds_files import FULL, HEADER, TREE, optional_parts, prompt_rounds, quiet, write, write_full

from radar.config import TreeConfig
from radar.train.dataset import RoundDataset, RoundsHeader, read_rounds, shard_path
from radar.train.round_writer import RoundWriter


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl")
    data = read_rounds(tmp_path / "r.jsonl")
    assert data.header == HEADER
    assert data.set_aside == ()
    assert data.prompt.tolist() == [p for p in range(4) for _ in range(3)]
    for prompt in range(4):
        position, scores, lengths = prompt_rounds(prompt)
        part = data.select(data.prompt == prompt)
        torch.testing.assert_close(part.scores, scores, atol=6e-6, rtol=0)
        assert torch.equal(part.accept_lengths, lengths)
        assert torch.equal(part.position, position)
    assert (data.scores.dtype, data.accept_lengths.dtype) == (torch.float32, torch.int64)


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in write(tmp_path / "r.jsonl", range(1)).splitlines()]
    assert lines[0] == {
        "format": "radar-rounds", "version": 2, "tree_top_k": 3, "max_calls": 4, "total_tokens": 12, "temperature": 0.0,
        "fields": [], "target": "t",
    }  # fmt: skip
    assert sorted(lines[1]) == ["accept_lengths", "position", "prompt", "scores"]
    assert lines[1]["scores"][0][2] is None
    assert lines[-1] == {"prompt_done": 0}


def test_a_file_that_is_still_recorded_is_readable(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    whole = write(file)
    file.write_bytes(whole[: whole.rindex(b'{"prompt_done"') - 20])
    with pytest.warns(UserWarning, match="3 lines set aside"):
        data = read_rounds(file)
    assert data.prompt.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello\n", "not a file of recorded rounds"),
        (b'{"format": "other"}\n', "not a file of recorded rounds"),
        (b'{"format": "radar-rounds", "version": 4}\n', "version 4 is unknown.*record the rounds again"),
        (b'{"format": "radar-rounds", "version": 1, "max_calls": 4}\n', "lacks tree_top_k, total_tokens, temperature"),
        (
            b'{"format":"radar-rounds","version":1,"tree_top_k":0,"max_calls":4,"total_tokens":9,"temperature":0}\n',
            "tree_top_k must be",
        ),
        (
            b'{"format":"radar-rounds","version":1,"tree_top_k":3,"max_calls":4,"total_tokens":9,"temperature":0}\n',
            "no usable round",
        ),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rounds(tmp_path / "r.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_rounds(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (RoundsHeader(TreeConfig(tree_top_k=3, max_calls=5, total_tokens=12), 0.0), "max_calls: 4 in the file, 5 now"),
        (RoundsHeader(TREE, 1.0), "temperature: 0.0 in the file, 1.0 now"),
        (RoundsHeader(TREE, 0.0, {"target": "u"}), "target: 't' in the file, 'u' now"),
    ],
)
def test_appending_another_kind_is_refused(tmp_path: Path, header: RoundsHeader, message: str) -> None:
    before = write(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=message):
        RoundWriter(tmp_path / "r.jsonl", header)
    assert (tmp_path / "r.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n"])
def test_a_foreign_file_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(ValueError, match="not a file of recorded rounds"):
        RoundWriter(tmp_path / "notes", HEADER)
    assert (tmp_path / "notes").read_bytes() == content


def test_the_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    position, scores, lengths = prompt_rounds(0)
    with RoundWriter(tmp_path / "r.jsonl", HEADER) as writer:
        with pytest.raises(ValueError, match="expected scores, accept_lengths, position"):
            writer.write_prompt(0, position, scores[:, :3], lengths)
        with pytest.raises(ValueError, match="round 1 of prompt 0: scores hold NaN"):
            writer.write_prompt(0, position, scores.index_fill(0, torch.tensor(1), torch.nan), lengths)
        with pytest.raises(ValueError, match="above its number of calls"):
            writer.write_prompt(0, position, scores, lengths + 4)
        writer.write_prompt(0, position, scores, lengths)
        with pytest.raises(ValueError, match=r"in .* already"):
            writer.write_prompt(0, position, scores, lengths)
    assert len(read_rounds(tmp_path / "r.jsonl")) == 3


def test_split_keeps_prompts_together(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", range(10))
    data = read_rounds(tmp_path / "r.jsonl")
    rest, held = data.split_by_prompt(0.3, seed=1)
    assert set(rest.prompt.tolist()).isdisjoint(held.prompt.tolist())
    assert (len(rest), len(held)) == (21, 9)
    assert held.fingerprint() == data.split_by_prompt(0.3, seed=1)[1].fingerprint()
    assert held.fingerprint() != data.split_by_prompt(0.3, seed=2)[1].fingerprint()
    assert len(data.split_by_prompt(0.001)[1]) == 3
    assert len(data.split_by_prompt(0.999)[0]) == 3
    with pytest.raises(ValueError, match="two prompts"):
        data.select(data.prompt == 1).split_by_prompt(0.5)
    with pytest.raises(ValueError, match="fraction"):
        data.split_by_prompt(1.0)


def test_several_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", range(2))
    write(tmp_path / "b.jsonl", range(2, 4))
    data = read_rounds([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert data.prompt.unique().tolist() == [0, 1, 4, 5]
    with RoundWriter(tmp_path / "c.jsonl", RoundsHeader(TreeConfig(tree_top_k=3, max_calls=5))) as writer:
        writer.write_prompt(0, torch.zeros(1), torch.zeros(1, 5, 3), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"c\.jsonl was recorded with"):
        read_rounds([tmp_path / "a.jsonl", tmp_path / "c.jsonl"])
    with pytest.raises(ValueError, match="no files"):
        read_rounds([])


def test_rounds_given_twice_are_refused(tmp_path: Path) -> None:
    """Under one name, another name, or as another file: they would count as those of other prompts."""
    a, b, copy, link = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "copy", "link"))
    copy.write_bytes(write(a, range(2)))
    link.symlink_to(a)
    write(b, range(2, 4))
    for again in (a, str(a), copy, link):
        with pytest.raises(ValueError, match=rf"{Path(again).name} holds the rounds of .*a\.jsonl: give them once"):
            read_rounds([a, b, again])
    assert len(read_rounds([a, b])) == 12


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            RoundsHeader(TREE, 1.0, {"target": "t"}),
            r"b\.jsonl is of temperature 1\.0, .*a\.jsonl of 0\.0",
        ),
        (RoundsHeader(TREE, 0.0, {"target": "u"}), "of target 'u', .*of 't'"),
        (RoundsHeader(TREE, 0.0, {"target": "t", "draft": "e"}), "of draft 'e', .*of 'd'"),
        (RoundsHeader(TREE, 0.0, {"target": "t", "note": "x"}), None),
        (RoundsHeader(TREE, 0.0), None),
    ],
)
def test_files_of_another_source_are_not_merged(tmp_path: Path, header: RoundsHeader, message: str | None) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for prompt, one in enumerate((replace(HEADER, metadata={"target": "t", "draft": "d"}), header)):
        with RoundWriter(files[prompt], one) as writer:
            writer.write_prompt(prompt, *prompt_rounds(prompt))
    if message is None:
        assert len(read_rounds(files)) == 6
        return
    with pytest.raises(ValueError, match=message):
        read_rounds(files)


def test_truncate(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl")
    data = read_rounds(tmp_path / "r.jsonl")
    assert data.truncate(2).scores.shape == (12, 2, 3)
    assert data.truncate(2).header.tree.max_calls == 2
    with pytest.raises(ValueError, match="max_calls=4, cannot replay 5"):
        data.truncate(5)


def test_prompts_may_not_be_mixed_or_repeated(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    lines = write(file, range(2)).splitlines()
    header, first, second = lines[0], lines[1:5], lines[5:9]
    file.write_bytes(b"\n".join([header, first[0], *second, *first, *second]) + b"\n")
    data = quiet(file)
    assert data.prompt.tolist() == [1, 1, 1, 0, 0, 0]
    assert [one.line for one in data.set_aside] == [2, 11, 12, 13]


def test_twenty_thousand_rounds_take_seconds(tmp_path: Path) -> None:
    import time

    header = RoundsHeader(TreeConfig())
    line = json.dumps(
        {"prompt": 0, "position": 9, "scores": [[-random.random()] * 10] * 16, "accept_lengths": [0] * 16}
    )
    (tmp_path / "r.jsonl").write_text("\n".join([json.dumps(header.to_dict()), *[line] * 20_000, '{"prompt_done": 0}']))
    start = time.perf_counter()
    assert len(read_rounds(tmp_path / "r.jsonl")) == 20_000
    assert time.perf_counter() - start < 10  # half a second here; the bound catches a quadratic reader


def test_optional_parts_come_back(tmp_path: Path) -> None:
    write_full(tmp_path / "r.jsonl")
    data = read_rounds(tmp_path / "r.jsonl")
    assert data.header == FULL
    assert data.signals is not None
    assert data.distribution is not None
    for prompt in range(4):
        signals, distribution = optional_parts(prompt)
        part = data.select(data.prompt == prompt)
        assert part.signals is not None
        assert part.distribution is not None
        for found, expected in zip(part.signals, signals, strict=True):
            torch.testing.assert_close(found, expected, atol=6e-6, rtol=0)
        torch.testing.assert_close(part.distribution, distribution, atol=6e-7, rtol=0)
        mean = (distribution * torch.arange(5)).sum(-1)
        torch.testing.assert_close(part.expected_accept(), mean, atol=1e-5, rtol=0)
    short = data.truncate(2)
    assert short.distribution is not None
    assert short.signals is not None
    assert short.distribution.shape == (12, 2, 3)
    torch.testing.assert_close(short.distribution.sum(-1), torch.ones(12, 2), atol=1e-5, rtol=0)
    assert short.signals.expected_lengths.shape == (12, 2)
    changed = data.distribution.clone()
    changed[0, 0, 0] += 1
    assert RoundDataset(*[*vars(data).values()][:-1], changed).fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("expected_lengths", [0.1, 0.2, 0.3], "expected_lengths are not 4 numbers"),
        ("expected_lengths", [0.1, 9.0, 0.3, 0.4], "an expected length is not between 0"),
        ("last_accept_length", -2, "whole number of -1 or more"),
        ("target_entropy", -0.5, "target_entropy is not 0 or more"),
        ("target_entropy", float("nan"), "NaN is not a number"),
        ("generated", None, "generated must be"),
        ("distribution", [[1.0, 0.0]] * 4, "distribution is not 4 rows of 2, 3"),
        ("distribution", [[0.5, 0.4], [1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0, 0]], "not one of probabilities"),
        ("distribution", [[1.5, -0.5], [1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0, 0]], "not one of probabilities"),
    ],
)
def test_corrupt_optional_parts_are_set_aside(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    file = tmp_path / "r.jsonl"
    lines = write_full(file).splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {key: value}).encode()
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match=rf"1 lines set aside \(line 3: .*{reason}"):
        assert len(read_rounds(file)) == 11


def test_the_writer_wants_what_the_header_says(tmp_path: Path) -> None:
    signals, distribution = optional_parts(0)
    with RoundWriter(tmp_path / "full.jsonl", FULL) as writer:
        with pytest.raises(ValueError, match="not so: distribution"):
            writer.write_prompt(0, *prompt_rounds(0), signals=signals)
        with pytest.raises(ValueError, match="not one of probabilities"):
            writer.write_prompt(0, *prompt_rounds(0), signals=signals, distribution=distribution * 0.9)
    with RoundWriter(tmp_path / "r.jsonl", HEADER) as writer, pytest.raises(ValueError, match="not so: signals"):
        writer.write_prompt(0, *prompt_rounds(0), signals=signals)
    with pytest.raises(ValueError, match="fields may hold"):
        RoundsHeader(TREE, fields=("distribution", "signals"))


def test_version_1_is_read_but_not_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    new = write(file)
    expected = read_rounds(file).fingerprint()
    header = json.loads(new.splitlines()[0]) | {"version": 1}
    del header["fields"]
    file.write_bytes(json.dumps(header).encode() + b"\n" + new.split(b"\n", 1)[1])
    assert read_rounds(file).fingerprint() == expected
    before = file.read_bytes()
    with pytest.raises(ValueError, match="format version 1, which is not appended to here"):
        RoundWriter(file, HEADER)
    assert file.read_bytes() == before


def test_rounds_at_every_token_are_a_version_of_their_own(tmp_path: Path) -> None:
    """Readers that do not know them refuse them, and they are not mixed with others."""
    every, plain = tmp_path / "every.jsonl", tmp_path / "plain.jsonl"
    write(plain)
    with RoundWriter(every, replace(HEADER, every_token=True)) as writer:
        writer.write_prompt(0, *prompt_rounds(0))
    header = json.loads(every.read_bytes().splitlines()[0])
    assert (header["version"], header["every_token"]) == (3, True)
    assert read_rounds(every).header.every_token
    assert not read_rounds(plain).header.every_token
    with pytest.raises(ValueError, match="only one has a round at every token"):
        read_rounds([plain, every])
    with pytest.raises(ValueError, match="format version 3, which is not appended to here"):
        RoundWriter(every, HEADER)
    every.write_bytes(every.read_bytes().replace(b',"every_token":true', b""))
    with pytest.raises(ValueError, match="every_token is False in version 3"):
        read_rounds(every)


def test_shards_make_one_set(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    write(whole, range(6))
    for index in range(3):
        write(shard_path(tmp_path / "r.jsonl", index, 3), range(index, 6, 3))
    data, expected = read_rounds(tmp_path / "r.jsonl"), read_rounds(whole)
    order = data.prompt.sort(stable=True).indices
    assert data.select(order).fingerprint() == expected.fingerprint(), "prompts keep their ids"
    with pytest.raises(ValueError, match="another number of processes"):
        shard_path(tmp_path / "r.jsonl", 0, 2)
    with RoundWriter(shard_path(tmp_path / "r.jsonl", 2, 3), HEADER) as writer:
        writer.write_prompt(0, *prompt_rounds(0))
    with pytest.raises(ValueError, match="prompt 0 is in another shard too"):
        read_rounds(tmp_path / "r.jsonl")
    shard_path(tmp_path / "r.jsonl", 1, 3).unlink()
    with pytest.raises(ValueError, match=r"shards are missing: r\.shard-1-of-3\.jsonl"):
        read_rounds(tmp_path / "r.jsonl")
