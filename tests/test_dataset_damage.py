"""Whatever a crash or an editor does to a file of rounds, what is left of it is sound."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds_files import quiet, write

from radar.train.dataset import read_rounds

FUZZ = settings(
    deadline=None, max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_a_crash_at_any_byte_costs_one_prompt_at_most(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "r.jsonl"
    file.unlink(missing_ok=True)
    whole = write(file)
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    finished = sum(b'"prompt_done"' in line for line in whole[:cut].split(b"\n")[:-1])
    if finished:
        assert set(quiet(file).prompt.tolist()) >= set(range(finished))
    assert write(file) == whole, "resuming gives the file of an uninterrupted run"


def break_round(record: dict[str, Any], how: str) -> None:
    scores, lengths = record["scores"], record["accept_lengths"]
    match how:
        case "renamed key":
            record["score"] = record.pop("scores")
        case "no position":
            del record["position"]
        case "NaN":
            scores[1][1] = float("nan")
        case "infinity":
            scores[1][1] = float("inf")
        case "infinity in words":  # -inf is null in this format
            scores[1][2] = -float("inf")
        case "text":
            scores[1][1] = "-1.0"
        case "ragged":
            scores[2].pop()
        case "a level short":
            scores.pop()
        case "above zero":
            scores[3][0] = 0.5
        case "unsorted":
            scores[3][2] = scores[3][0] + 0.01 if scores[3][0] < -0.02 else -0.0
            scores[3][0] -= 5
        case "negative length":
            lengths[0] = -1
        case "longer than its calls":
            lengths[0] = 2
        case "grows after falling behind":
            lengths[:] = [1, 1, 1, 2]
        case "half a token":
            lengths[0] = 0.5
        case "length too large":
            lengths[3] = 2**70
        case "lengths short":
            lengths.pop()
        case "prompt is text":
            record["prompt"] = "7"


HOW = [
    "renamed key",
    "no position",
    "NaN",
    "infinity",
    "infinity in words",
    "text",
    "ragged",
    "a level short",
    "above zero",
    "unsorted",
    "negative length",
    "longer than its calls",
    "grows after falling behind",
    "half a token",
    "length too large",
    "lengths short",
    "prompt is text",
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("line", [2, 8])
def test_a_corrupt_round_is_named_and_the_rest_is_used(tmp_path: Path, how: str, line: int) -> None:
    file = tmp_path / "r.jsonl"
    lines = write(file).splitlines()
    record = json.loads(lines[line - 1])
    break_round(record, how)
    lines[line - 1] = json.dumps(record).encode()
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match=rf"1 lines set aside \(line {line}: "):
        data = read_rounds(file)
    assert [one.line for one in data.set_aside] == [line]
    assert len(data) == 11
    assert data.scores.isnan().sum() == 0


@FUZZ
@given(
    line=st.integers(2, 17),
    junk=st.one_of(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b"\r" not in b), st.integers(0, 60)),
)
def test_a_damaged_line_costs_its_prompt_at_most(tmp_path: Path, line: int, junk: bytes | int) -> None:
    """Lines replaced by junk or cut somewhere: no exception, and every other prompt is complete and right."""
    file = tmp_path / "r.jsonl"
    file.unlink(missing_ok=True)
    lines = write(file).splitlines()
    before = quiet(file)
    lines[line - 1] = junk if isinstance(junk, bytes) else lines[line - 1][: -1 - junk]
    file.write_bytes(b"\n".join(lines) + b"\n")
    after = quiet(file)
    hit = (line - 2) // 4
    assert line in [one.line for one in after.set_aside]
    for prompt in set(range(4)) - {hit}:
        a, b = before.select(before.prompt == prompt), after.select(after.prompt == prompt)
        assert a.fingerprint() == b.fingerprint()
    assert (after.prompt == hit).sum() <= 3
    assert {p for p in range(4) if (after.prompt == p).any()} >= set(range(4)) - {hit}


@FUZZ
@given(where=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_a_value_error_or_a_dataset(tmp_path: Path, where: int, value: int) -> None:
    file = tmp_path / "r.jsonl"
    file.unlink(missing_ok=True)
    data = bytearray(write(file))
    data[where % len(data)] = value
    file.write_bytes(data)
    try:
        rounds = quiet(file)
    except ValueError:
        return
    assert not rounds.scores.isnan().any()
    assert (rounds.accept_lengths <= torch.arange(1, rounds.accept_lengths.shape[1] + 1)).all()
