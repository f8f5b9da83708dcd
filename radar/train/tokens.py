"""Training text as token streams: a weighted mixture that draws windows, and files turned into tokens."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from radar.errors import UsageError
from radar.tools.prompts import read_lines, read_text

__all__ = ["TokenMixture", "encode_file"]

PIECE = 1 << 20  # tokens that are hashed at a time: a stream may be a mapped file larger than memory
Tokens = npt.NDArray[np.integer[Any]]


class TokenMixture:
    """One or more 1-D integer streams, drawn from with fixed weights.

    Args:
        streams: arrays or tensors of token ids, documents one after another.
        weights: share of the windows that each stream gives; equal to the stream lengths' shares by default.
    """

    def __init__(
        self, streams: Tensor | Tokens | Sequence[Tensor | Tokens], weights: Sequence[float] | None = None
    ) -> None:
        several = [streams] if isinstance(streams, Tensor | np.ndarray) else list(streams)
        self.streams: list[Tokens] = [s.cpu().numpy() if isinstance(s, Tensor) else np.asarray(s) for s in several]
        if not self.streams:
            raise UsageError("TokenMixture: at least one stream is needed")
        for index, stream in enumerate(self.streams):
            if stream.ndim != 1 or not np.issubdtype(stream.dtype, np.integer) or len(stream) < 2:
                raise UsageError(
                    f"TokenMixture: stream {index} must hold integers in 1-D, got {stream.dtype} {stream.shape}"
                )
        shares = np.asarray(weights if weights is not None else [len(s) for s in self.streams], dtype=np.float64)
        if shares.shape != (len(self.streams),) or not (shares > 0).all() or not np.isfinite(shares).all():
            raise UsageError(f"TokenMixture: weights must be {len(self.streams)} positive numbers, got {weights!r}")
        self.weights: npt.NDArray[np.float64] = shares / shares.sum()

    def windows(self, rows: int, length: int, seed: tuple[int, ...]) -> Tensor:
        """Random windows [rows, length] int64: a pure function of `seed`, so that a resumed run sees the same text."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.streams), size=rows, p=self.weights)
        out = np.empty((rows, length), dtype=np.int64)
        for row, index in enumerate(chosen):
            start = rng.integers(0, len(self.streams[index]) - length + 1)
            out[row] = self.streams[index][start : start + length]
        return torch.from_numpy(out)

    def frequencies(self, vocab_size: int) -> npt.NDArray[np.float64]:
        """Share of every token id under the mixture [vocab_size]. Raises ValueError if an id lies outside."""
        total = np.zeros(vocab_size)
        for stream, weight in zip(self.streams, self.weights, strict=True):
            counts = np.bincount(stream, minlength=vocab_size)
            if len(counts) > vocab_size:
                raise UsageError(f"token id {len(counts) - 1} is outside the target's vocabulary of {vocab_size}")
            total += weight * counts / len(stream)
        return total

    def fingerprint(self) -> str:
        """Short hash of all tokens and the weights, for the check that a resumed run continues on the same text."""
        digest = hashlib.sha256(self.weights.tobytes())
        for stream in self.streams:
            digest.update(f"{len(stream)} ".encode())
            for start in range(0, len(stream), PIECE):
                digest.update(stream[start : start + PIECE].astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def encode_file(
    path: str | os.PathLike[str], encode: Callable[[str], Sequence[int]], *, eos_token_id: int | None = None
) -> Tokens:
    """Tokens of a text file, int32, an end token after every document if one is given.

    A `.jsonl` file holds a document per line under `text`. Any other file is text: documents end at a form feed, or,
    in a file without form feeds, at three or more line breaks in a row (two or more blank lines).

    Args:
        path: the file, UTF-8.
        encode: text to ids, for instance `tokenizer.encode`.
        eos_token_id: appended to every document that does not end with it.

    Raises:
        ValueError: a file without text, or that is not UTF-8; names the line that is not a document.
    """
    if Path(path).suffix == ".jsonl":
        documents = []
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                documents.append(str(json.loads(line)["text"]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UsageError(f"{path}:{number}: expected an object with a 'text' field") from error
    else:
        text = read_text(path)
        documents = text.split("\f") if "\f" in text else re.split(r"\n{3,}", text)
    ids: list[int] = []
    for document in documents:
        if document.strip():
            ids.extend(encode(document))
            if eos_token_id is not None and ids[-1:] != [eos_token_id]:
                ids.append(eos_token_id)
    if not ids:
        raise UsageError(f"{path}: no text found")
    return np.asarray(ids, dtype=np.int32)
