"""Text to train on: documents of a file, and the fingerprint of all tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from radar.tools.documents import encode_file
from radar.train.tokens import TokenMixture


def test_the_fingerprint_covers_every_token() -> None:
    ids = np.arange(3_000_000, dtype=np.int32) % 1000
    swapped = ids.copy()
    swapped[[1_500_000, -1]] = swapped[[-1, 1_500_000]]
    prints = {TokenMixture([ids]).fingerprint(), TokenMixture([swapped]).fingerprint()}
    assert len(prints) == 2
    assert TokenMixture([torch.from_numpy(ids.astype(np.int64))]).fingerprint() in prints
    assert TokenMixture([ids.repeat(2)[::2]]).fingerprint() in prints
    parts = TokenMixture([ids[:-5], ids[-5:]], [0.5, 0.5]), TokenMixture([ids[:5], ids[5:]], [0.5, 0.5])
    assert parts[0].fingerprint() != parts[1].fingerprint()


def test_files_become_documents(tmp_path: Path) -> None:
    def encode(document: str) -> list[int]:
        return [ord(character) for character in document]

    (tmp_path / "a.txt").write_text("ab\n\ncd\n\n\nef")
    (tmp_path / "b.txt").write_text("ab\n\n\ncd\fef")
    (tmp_path / "c.jsonl").write_text('{"text": "ab"}\n\n{"text": "cd"}\n')
    (tmp_path / "d.jsonl").write_text('{"prompt": "ab"}\n')
    assert encode_file(tmp_path / "a.txt", encode, eos_token_id=0).tolist() == [*b"ab\n\ncd", 0, *b"ef", 0]
    assert encode_file(tmp_path / "b.txt", encode, eos_token_id=0).tolist() == [*b"ab\n\n\ncd", 0, *b"ef", 0]
    assert encode_file(tmp_path / "c.jsonl", encode).tolist() == [*b"abcd"]
    with pytest.raises(ValueError, match=r"d\.jsonl:1"):
        encode_file(tmp_path / "d.jsonl", encode)


def test_only_line_ends_end_a_document(tmp_path: Path) -> None:
    odd = "a\x85b\u2028c\u2029d"
    line = json.dumps({"text": odd}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{line}\r\n{line}\n".encode())
    assert encode_file(tmp_path / "a.jsonl", lambda document: [ord(c) for c in document]).tolist() == [
        ord(character) for character in odd * 2
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_that_is_not_utf8_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is not UTF-8 text .*byte 10"):
        encode_file(tmp_path / name, lambda document: [1])
