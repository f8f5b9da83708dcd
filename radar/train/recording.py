"""A recording on disk: a folder of shards, each the rounds of some prompts in one safetensors file, whole or not there.

Tensors are the parts of a `RoundDataset` and, as `trigrams` and `trigram_ends`, the fingerprints of the prompts. The
metadata is text: `radar-rounds` (the format's version), `header` (JSON, see `RoundsHeader`), `prompts` (JSON: number
to digest of the prompt's token ids, those without a round included) and `sha256` of all of that.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from radar.errors import FormatError, UsageError
from radar.train.files import digest, replace_file
from radar.train.rounds import RoundDataset, RoundsHeader, concatenate

__all__ = ["Damaged", "Recording", "Shard", "folder_of", "read_shard", "shard_files"]

FORMAT, VERSION = "radar-rounds", "4"
SHARD_PROMPTS, SHARD_SECONDS = 32, 60.0  # a shard is written when either is reached: a crash costs no more than that


class Damaged(FormatError):
    """A shard that was cut off or changed: its prompts have to be recorded again."""


class Shard(NamedTuple):
    """`prompts`: number to digest. `rounds` may be none, where texts were too short."""

    prompts: dict[int, str]
    rounds: RoundDataset


class Recording:
    """A folder that is begun, or gone on with: opening it reads what is there; what is damaged is recorded again.

    Several processes may write to one folder, other prompts each.

    Args:
        path: a folder, which need not be there.
        header: of what is written.
        ids: of the prompts, by number.

    Attributes:
        done: numbers of the prompts that are there.
        rounds, accepted: of these prompts: how many, and the sum of their accepted draft tokens for every stop [T].

    Raises ValueError, and leaves the folder as it is, if it holds other prompts or rounds of another kind.
    """

    def __init__(self, path: Path, header: RoundsHeader, ids: Sequence[Sequence[int]]) -> None:
        self.path, self.header, self.done = folder_of(path), header, set[int]()
        self._digests = {n: hashlib.sha256(json.dumps(list(one)).encode()).hexdigest() for n, one in enumerate(ids)}
        self.rounds, self.accepted = 0, torch.zeros(header.tree.max_calls, dtype=torch.float64)
        damaged = []
        for file in shard_files(path):
            try:
                shard = read_shard(file)
            except Damaged as error:
                damaged.append(file)
                warnings.warn(f"{error}: its prompts are recorded again", stacklevel=3)
                continue
            if other := shard.rounds.header.unlike(header):
                raise UsageError(f"{path} holds another recording ({other}): write to a new folder, or as there")
            if changed := [n for n, one in shard.prompts.items() if self._digests.get(n, one) != one]:
                raise UsageError(
                    f"{path} holds another recording (prompt {changed[0]} is another): write to a new folder"
                )
            self._count(shard.prompts, shard.rounds)
        for file in damaged:
            file.unlink()
        self._waiting: dict[int, RoundDataset] = {}
        self._written = time.monotonic()

    def add(self, prompt: int, rounds: RoundDataset) -> None:
        """All rounds of a prompt, in order, with its fingerprint. ValueError: scores or lengths that cannot be."""
        lengths, calls = rounds.accept_lengths, torch.arange(1, rounds.accept_lengths.shape[1] + 1)
        if not (rounds.scores <= 1e-3).all() or ((lengths < 0) | (lengths > calls)).any():  # NaN is not below either
            raise UsageError(f"rounds of prompt {prompt}: scores must be log-probabilities, lengths 0 to their calls")
        self._waiting[prompt] = rounds
        if len(self._waiting) >= SHARD_PROMPTS or time.monotonic() - self._written > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, under another name, and rename it when it is whole."""
        if self._waiting:
            prompts = {number: self._digests[number] for number in self._waiting}
            rounds = concatenate(list(self._waiting.values()))
            trigrams = [rounds.prompts[number] for number in prompts]
            tensors = {name: part.contiguous() for name, part in rounds.tensors().items()}
            tensors["trigrams"] = torch.cat(trigrams)
            tensors["trigram_ends"] = torch.tensor([len(one) for one in trigrams]).cumsum(0)
            about = {"header": json.dumps(self.header.to_dict()), "prompts": json.dumps(prompts)}
            about |= {FORMAT: VERSION, "sha256": _sha256(about, tensors)}
            file = self.path / f"prompts-{min(prompts):06d}.safetensors"  # a prompt is in one shard only
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(file, safetensors.torch.save(tensors, about))
            self._count(prompts, rounds)
            self._waiting.clear()
        self._written = time.monotonic()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()  # of an interruption too: what waits is whole

    def _count(self, prompts: Mapping[int, str], rounds: RoundDataset) -> None:
        self.done |= prompts.keys()
        self.rounds += len(rounds)
        self.accepted += rounds.accept_lengths.double().sum(0)


def folder_of(path: Path) -> Path:
    """The path, if it can be a recording. FormatError: it is a file, or is named as those of earlier releases were."""
    if path.is_file() or path.suffix == ".jsonl":
        raise FormatError(
            f"{path}: recorded rounds are a folder of shards now, and .jsonl files of earlier releases are not read: "
            f"record them again with `radar record --out {path.with_suffix('')}`"
        )
    return path


def shard_files(folder: Path) -> list[Path]:
    """In the order of their first prompts."""
    return sorted(folder.glob("prompts-*.safetensors"))


def read_shard(file: Path) -> Shard:
    """Raises `Damaged`, or FormatError for a file of another kind or version."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    except safetensors.SafetensorError as error:
        raise Damaged(f"{file} is cut off or damaged ({error})") from error
    if (version := about.get(FORMAT)) != VERSION:
        found = "it is no file of recorded rounds" if version is None else f"version {version} is unknown"
        raise FormatError(f"{file}: {found}, this code reads version {VERSION}: record the rounds to a new folder")
    if about.get("sha256") != _sha256(about, tensors):
        raise Damaged(f"{file} is damaged (it does not hold what was written)")
    prompts = {int(number): digest for number, digest in json.loads(about["prompts"]).items()}
    trigrams = tensors.pop("trigrams").tensor_split(tensors.pop("trigram_ends")[:-1])
    header = RoundsHeader.from_dict(json.loads(about["header"]))
    return Shard(prompts, RoundDataset.of(tensors, header, dict(zip(prompts, trigrams, strict=True))))


def _sha256(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest(tensors, about=f"{about.get('header')}{about.get('prompts')}")
