"""A recording on disk: a folder of shards, each the rounds of some prompts in one safetensors file, whole or not there.

Tensors are the parts of a `RoundDataset` and, as `trigrams` and `trigram_ends`, the fingerprints of the prompts. The
metadata is text: `radar-rounds` (the format's version), `header` (JSON, see `RoundsHeader`), `prompts` (JSON: number
to digest of the prompt's token ids, those without a round included) and `sha256` of all of that.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from radar.errors import FormatError, NotFoundError, UsageError
from radar.files import replacing
from radar.replay.rounds import RoundDataset, RoundsHeader, concatenate, digest

__all__ = ["Damaged", "Recording", "read_rounds", "read_shard", "shard_files"]

FORMAT, VERSION = "radar-rounds", "4"
SHARD_PROMPTS, SHARD_SECONDS = 32, 60.0  # a shard is written when either is reached: a crash costs no more than that
ONE_KIND = ("tree_top_k", "max_calls", "total_tokens", "every_token", "temperature", "target", "draft")


class Damaged(FormatError):
    """A shard that was cut off or changed: its prompts have to be recorded again."""


class Recording(AbstractContextManager["Recording"]):
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
        self.path, self.header, self.done = _folder(path), header, set[int]()
        self._digests = {n: hashlib.sha256(json.dumps(list(one)).encode()).hexdigest() for n, one in enumerate(ids)}
        self.rounds, self.accepted = 0, torch.zeros(header.tree.max_calls, dtype=torch.float64)
        damaged = []
        for file in shard_files(path):
            try:
                prompts, rounds = read_shard(file)
            except Damaged as error:
                damaged.append(file)
                warnings.warn(f"{error}: its prompts are recorded again", stacklevel=3)
                continue
            if not self.done:  # what is gone on with may know of other numbers of nodes, or of none
                header = self.header = replace(header, nodes=rounds.header.nodes)
            if other := rounds.header.unlike(header):
                raise UsageError(f"{path} holds another recording ({other}): write to a new folder, or as there")
            if changed := [n for n, one in prompts.items() if self._digests.get(n, one) != one]:
                raise UsageError(
                    f"{path} holds another recording (prompt {changed[0]} is another): write to a new folder"
                )
            self._count(prompts, rounds)
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
            name = f"prompts-{min(prompts):06d}.safetensors"  # a prompt is in one shard only
            with replacing(self.path) as place:
                safetensors.torch.save_file(tensors, place / name, about)
            self._count(prompts, rounds)
            self._waiting.clear()
        self._written = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.flush()  # of an interruption too: what waits is whole

    def _count(self, prompts: Iterable[int], rounds: RoundDataset) -> None:
        self.done.update(prompts)
        self.rounds += len(rounds)
        self.accepted += rounds.accept_lengths.double().sum(0)


def _folder(path: Path) -> Path:
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


def read_rounds(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RoundDataset:
    """Read a recording, or several of one kind (whose prompts are renumbered: none are mixed up).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a shard that is damaged or of another version; a file of an earlier release; no round at all; of
            several recordings, one of another tree, temperature, target or draft than the first, or the same rounds
            again.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    parts = [_read_folder(Path(one)) for one in paths]
    if not any(map(len, parts)):
        raise UsageError(f"no round in {paths[0]}: its texts were too short (see `radar record --max-new-tokens`)")
    renumbered, offset = [], 0
    given: dict[str, str | os.PathLike[str]] = {}
    for one, part in zip(paths, parts, strict=True):
        if other := part.header.unlike(parts[0].header, ONE_KIND):
            raise UsageError(f"{one} is of another kind than {paths[0]} ({other}): read them apart")
        if not len(part):
            continue
        if (content := part.fingerprint()) in given:
            raise UsageError(f"{one} holds the rounds of {given[content]}: give them once, they are no other prompts'")
        given[content] = one
        prompts = {number + offset: trigrams for number, trigrams in part.prompts.items()}
        renumbered.append(replace(part, prompt=part.prompt + offset, prompts=prompts))
        offset += int(part.prompt.max()) + 1
    return concatenate(renumbered)


def _read_folder(path: Path) -> RoundDataset:
    files = shard_files(_folder(path))
    if not files:
        raise NotFoundError(f"no recorded rounds in {path}: record them with `radar record --out {path}`")
    parts: list[RoundDataset] = []
    seen: set[int] = set()
    for file in files:
        try:
            prompts, rounds = read_shard(file)
        except Damaged as error:
            raise FormatError(f"{error}: give the same `radar record` again, which records what is missing") from error
        if parts and (other := rounds.header.unlike(parts[0].header)):
            raise FormatError(f"{file} is of another recording than {files[0].name} ({other}): keep them apart")
        if twice := seen & prompts.keys():
            raise FormatError(f"{file}: prompt {min(twice)} is in another shard too: remove one of them")
        seen |= prompts.keys()
        parts.append(rounds)
    data = concatenate(parts)
    return data.select(data.prompt.sort(stable=True).indices)


def read_shard(file: Path) -> tuple[dict[int, str], RoundDataset]:
    """The digests of its prompts, by number, and their rounds, of which there may be none.

    Raises `Damaged`, or FormatError for a file of another kind or version.
    """
    try:
        with safetensors.safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    except safetensors.SafetensorError as error:
        raise Damaged(f"{file} is cut off or damaged ({error})") from error
    version = about.get(FORMAT)
    if "sha256" in about and (not str(version).isdigit() or about["sha256"] != _sha256(about, tensors)):
        raise Damaged(f"{file} is damaged (it does not hold what was written)")
    if version != VERSION:
        found = "it is no file of recorded rounds" if version is None else f"version {version} is unknown"
        raise FormatError(f"{file}: {found}, this code reads version {VERSION}: record the rounds to a new folder")
    if "sha256" not in about:
        raise Damaged(f"{file} is damaged (it does not hold what was written)")
    prompts = {int(number): digest for number, digest in json.loads(about["prompts"]).items()}
    trigrams = tensors.pop("trigrams").tensor_split(tensors.pop("trigram_ends")[:-1])
    header = RoundsHeader.from_dict(json.loads(about["header"]))
    return prompts, RoundDataset.of(tensors, header, dict(zip(prompts, trigrams, strict=True)))


def _sha256(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest(tensors, about=f"{about.get('header')}{about.get('prompts')}")
