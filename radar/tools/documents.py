"""Files of text to train on: documents, and their tokens in a row."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radar.errors import UsageError
from radar.tools.prompts import read_lines, read_text

__all__ = ["encode_file"]


def encode_file(
    path: str | os.PathLike[str], encode: Callable[[str], Sequence[int]], *, eos_token_id: int | None = None
) -> npt.NDArray[np.int32]:
    """Tokens of a text file, int32, an end token after every document if one is given.

    A `.jsonl` file holds a document per line under `text`; one with `"finish_reason": "length"` beside was cut off, and
    gets no end token. A folder holds such files. Any other file is text: documents end at a form feed, or, in a file
    without form feeds, at three or more line breaks in a row (two or more blank lines).

    Args:
        path: the file, UTF-8.
        encode: text to ids, for instance `tokenizer.encode`.
        eos_token_id: appended to every document that has an end and does not end with it.

    Raises:
        ValueError: a file without text, or that is not UTF-8; names the line that is not a document.
    """
    if Path(path).is_dir():
        documents = [one for file in sorted(Path(path).glob("*.jsonl")) for one in _documents(file)]
    else:
        documents = _documents(path)
    ids: list[int] = []
    for document, is_whole in documents:
        if document.strip():
            ids.extend(encode(document))
            if is_whole and eos_token_id is not None and ids[-1:] != [eos_token_id]:
                ids.append(eos_token_id)
    if not ids:
        raise UsageError(f"{path}: no text found")
    return np.asarray(ids, dtype=np.int32)


def _documents(path: str | os.PathLike[str]) -> list[tuple[str, bool]]:
    """Texts, and whether each has its end."""
    if Path(path).suffix != ".jsonl":
        text = read_text(path)
        return [(one, True) for one in (text.split("\f") if "\f" in text else re.split(r"\n{3,}", text))]
    documents = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            documents.append((str(found["text"]), found.get("finish_reason") != "length"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{path}:{number}: expected an object with a 'text' field") from error
    return documents
