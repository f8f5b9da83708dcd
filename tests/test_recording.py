"""Recordings on disk: whatever a crash or a disk does, what is read is what was written; the rest is written again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rounds_files import FULL, HEADER, IDS, TREE, prompt_rounds, write

from radar.errors import FormatError
from radar.replay import recording as module
from radar.replay.recording import Recording, read_rounds, shard_files
from radar.replay.rounds import RoundDataset, RoundsHeader


@pytest.mark.parametrize("header", [HEADER, FULL, RoundsHeader(TREE, 0.0, {"target": "t"}, every_token=True)])
def test_rounds_come_back_as_they_were(tmp_path: Path, header: RoundsHeader) -> None:
    written = write(tmp_path / "r", header=header)
    data = read_rounds(tmp_path / "r")
    assert data.header == header
    assert data.prompt.tolist() == [p for p in range(4) for _ in range(3)]
    for prompt in range(4):
        expected, found = prompt_rounds(prompt, header), data.select(data.prompt == prompt)
        assert found.fingerprint() == expected.fingerprint()
        assert torch.equal(found.prompts[prompt], expected.prompts[prompt])
    assert (written.done, written.rounds) == ({0, 1, 2, 3}, 12)
    assert torch.equal(written.accepted, data.accept_lengths.double().sum(0))


def test_a_shard_is_what_the_docstring_says(tmp_path: Path) -> None:
    write(tmp_path / "r", range(2))
    (file,) = (tmp_path / "r").iterdir()
    assert file.name == "prompts-000000.safetensors"
    with safetensors.safe_open(file, "pt") as opened:
        about, names = opened.metadata(), sorted(opened.keys())
    assert sorted(about) == ["header", "prompts", "radar-rounds", "sha256"]
    assert about["radar-rounds"] == "4"
    assert RoundsHeader.from_dict(json.loads(about["header"])) == HEADER
    assert list(json.loads(about["prompts"])) == ["0", "1"]
    assert {"scores", "accept_lengths", "prompt", "position", "trigrams", "trigram_ends"} == set(names)


def test_shards_are_written_as_prompts_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many prompts, and after a while; the rest at the end. Each prompt is in one of them."""
    monkeypatch.setattr(module, "SHARD_PROMPTS", 3)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Recording(tmp_path / "r", HEADER, IDS) as recording:
        for prompt in range(5):
            recording.add(prompt, prompt_rounds(prompt))
        assert [file.name for file in shard_files(tmp_path / "r")] == ["prompts-000000.safetensors"]
        now[0] = 61.0
        recording.add(5, prompt_rounds(5))
        recording.add(6, prompt_rounds(6))
        assert len(shard_files(tmp_path / "r")) == 2
    assert len(shard_files(tmp_path / "r")) == 3
    assert read_rounds(tmp_path / "r").prompt.unique().tolist() == list(range(7))


def test_what_was_finished_before_an_interruption_is_written(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Recording(tmp_path / "r", HEADER, IDS) as recording:
            recording.add(0, prompt_rounds(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_rounds(tmp_path / "r")) == 3


def test_a_crash_while_writing_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "r", range(2))

    def crash(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("radar.files.os.replace", crash)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "r", range(4))
    assert read_rounds(tmp_path / "r").prompt.unique().tolist() == [0, 1]
    write(tmp_path / "r", range(4))
    assert read_rounds(tmp_path / "r").prompt.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("where", [*range(0, 2600, 260), -1])
@pytest.mark.parametrize("how", ["cut off", "changed"])
def test_a_damaged_shard_is_named_and_recorded_again(tmp_path: Path, where: int, how: str) -> None:
    """Wherever it was hit, in its header or in a number, and never read as if nothing was."""
    folder = tmp_path / "r"
    write(folder, range(2))
    expected = read_rounds(folder).fingerprint()
    (file,) = shard_files(folder)
    data = bytearray(file.read_bytes())
    at = where % len(data)
    data[at] ^= 0x11
    file.write_bytes(data if how == "changed" else data[:at])
    with pytest.raises(FormatError, match=r"prompts-000000\.safetensors"):
        read_rounds(folder)
    with pytest.warns(UserWarning, match="its prompts are recorded again"):
        write(folder, range(2))
    assert read_rounds(folder).fingerprint() == expected


def test_other_shards_are_kept_when_one_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write(folder, range(2))
    write(folder, range(4))
    first, second = shard_files(folder)
    before = second.read_bytes()
    first.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"prompts-000000\.safetensors is cut off or damaged .*recorded again"):
        recording = write(folder, range(4))
    assert recording.done == {0, 1, 2, 3}
    assert second.read_bytes() == before
    assert len(read_rounds(folder)) == 12


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            RoundsHeader(replace(TREE, max_calls=5), 0.0, {"target": "t"}),
            "max_calls 4, not 5",
        ),
        (RoundsHeader(TREE, 1.0, {"target": "t"}), "temperature 0.0, not 1.0"),
        (RoundsHeader(TREE, 0.0, {"target": "u"}), "target 't', not 'u'"),
        (RoundsHeader(TREE, 0.0, {"target": "t", "seed": 1}), "seed 'nothing', not 1"),
        (RoundsHeader(TREE, 0.0, {"target": "t"}, every_token=True), "every_token False, not True"),
    ],
)
def test_going_on_with_another_kind_is_refused(tmp_path: Path, header: RoundsHeader, message: str) -> None:
    folder = tmp_path / "r"
    write(folder)
    (folder / "prompts-00000.safetensors").write_bytes(b"torn")  # is not thrown away by whoever is refused
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with (
        pytest.warns(UserWarning, match="recorded again"),
        pytest.raises(ValueError, match=f"holds another recording .*{message}"),
    ):
        Recording(folder, header, IDS)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_going_on_with_other_prompts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "r")
    with pytest.raises(ValueError, match="prompt 2 is another"):
        Recording(tmp_path / "r", HEADER, [*IDS[:2], [9, 9], *IDS[3:]])
    assert Recording(tmp_path / "r", HEADER, IDS[:2]).done == {0, 1, 2, 3}  # a shorter list is no other one


@pytest.mark.parametrize("name", ["r.jsonl", "notes"])
def test_a_file_of_an_earlier_release_is_told_what_to_do(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for exists in (True, False):
        if exists:
            file.write_bytes(b'{"format": "radar-rounds", "version": 2}\n')
        elif file.suffix:
            file.unlink()
        for call in (lambda: read_rounds(file), lambda: Recording(file, HEADER, IDS)):
            with pytest.raises(FormatError, match=rf"{name}: .* a folder of shards now.*record them again with `radar"):
                call()


def test_another_version_or_kind_is_named_and_kept(tmp_path: Path) -> None:
    for about, message in (({"radar-rounds": "5"}, "version 5 is unknown"), ({}, "it is no file of recorded rounds")):
        folder = tmp_path / str(len(about))
        folder.mkdir()
        file = folder / "prompts-000000.safetensors"
        safetensors.torch.save_file({"x": torch.ones(2)}, file, about)
        for call in (lambda f=folder: read_rounds(f), lambda f=folder: Recording(f, HEADER, IDS)):
            with pytest.raises(FormatError, match=message):
                call()
        assert file.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": torch.full((3, 4, 3), torch.nan)},
        {"scores": torch.full((3, 4, 3), 0.5)},
        {"accept_lengths": torch.full((3, 4), 2)},
        {"accept_lengths": torch.full((3, 4), -1)},
    ],
)
def test_rounds_that_cannot_be_are_not_written(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    good = prompt_rounds(0)
    bad = RoundDataset.of({**good.tensors(), **change}, HEADER, good.prompts)
    with Recording(tmp_path / "r", HEADER, IDS) as recording, pytest.raises(ValueError, match="rounds of prompt 0"):
        recording.add(0, bad)
    assert not shard_files(tmp_path / "r")
