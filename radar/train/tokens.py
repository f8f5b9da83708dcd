"""Training text: a weighted mixture of token streams that draws windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from radar.errors import UsageError

__all__ = ["TokenMixture"]

PIECE = 1 << 20  # tokens that are hashed at a time: a stream may be a mapped file larger than memory
Tokens = npt.NDArray[np.integer[Any]]


class TokenMixture:
    """One or more 1-D integer streams, drawn from with fixed weights.

    Args:
        streams: arrays or tensors of token ids, documents one after another.
        weights: share of the windows that each stream gives; equal to the stream lengths' shares by default.
    """

    def __init__(self, streams: Sequence[Tensor | Tokens], weights: Sequence[float] | None = None) -> None:
        self.streams: list[Tokens] = [s.cpu().numpy() if isinstance(s, Tensor) else np.asarray(s) for s in streams]
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
