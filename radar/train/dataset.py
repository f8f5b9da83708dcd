"""Recordings on disk, read whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from radar.errors import FormatError, NotFoundError, UsageError
from radar.train.recording import Damaged, folder_of, read_shard, shard_files
from radar.train.rounds import RoundDataset, RoundsHeader, concatenate

__all__ = ["RoundDataset", "RoundsHeader", "read_rounds"]

ONE_KIND = ("tree_top_k", "max_calls", "total_tokens", "every_token", "temperature", "target", "draft")


def read_rounds(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RoundDataset:
    """Read a recording, or several of one kind (whose prompts are renumbered: none are mixed up).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a shard that is damaged or of another version; a file of an earlier release; no round at all; of
            several recordings, one of another tree, temperature, target or draft than the first, or the same rounds
            again.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise UsageError("read_rounds: no recordings given")
    parts = [_read_folder(Path(one)) for one in paths]
    if not any(len(part) for part in parts):
        raise UsageError(f"no round in {paths[0]}: its texts were too short (see `radar record --max-new-tokens`)")
    if len(parts) == 1:
        return parts[0]
    renumbered, offset = [], 0
    given: dict[str, str | os.PathLike[str]] = {}
    for one, part in zip(paths, parts, strict=True):
        if other := part.header.unlike(parts[0].header, ONE_KIND):
            raise UsageError(f"{one} is of another kind than {paths[0]} ({other}): read them apart")
        if len(part) and (content := part.fingerprint()) in given:
            raise UsageError(f"{one} holds the rounds of {given[content]}: give them once, they are no other prompts'")
        if len(part):
            given[content] = one
            prompts = {number + offset: trigrams for number, trigrams in part.prompts.items()}
            renumbered.append(replace(part, prompt=part.prompt + offset, prompts=prompts))
            offset += int(part.prompt.max()) + 1
    return concatenate(renumbered)


def _read_folder(path: Path) -> RoundDataset:
    files = shard_files(folder_of(path))
    if not files:
        raise NotFoundError(f"no recorded rounds in {path}: record them with `radar record --out {path}`")
    try:
        shards = [read_shard(file) for file in files]
    except Damaged as error:
        raise FormatError(f"{error}: give the same `radar record` again, which records what is missing") from error
    seen: set[int] = set()
    for file, shard in zip(files, shards, strict=True):
        if other := shard.rounds.header.unlike(shards[0].rounds.header):
            raise FormatError(f"{file} is of another recording than {files[0].name} ({other}): keep them apart")
        if twice := seen & shard.prompts.keys():
            raise FormatError(f"{file}: prompt {min(twice)} is in another shard too: remove one of them")
        seen |= shard.prompts.keys()
    data = concatenate([shard.rounds for shard in shards])
    return data.select(data.prompt.sort(stable=True).indices)
