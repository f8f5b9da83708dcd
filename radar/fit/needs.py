"""What a fit will take, said beforehand: time, memory, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from radar.errors import UsageError
from radar.fit.head import batch_of, head_weights, training_bytes
from radar.fit.parts import Parts
from radar.fit.stages import SHARES, clock
from radar.fit.text import cache_bytes, rows_of

__all__ = ["said"]

GB = 1e9
TEXT_BYTES, ROUND_BYTES = 9, 2800  # of a token, with its id; of a recorded round, with that of other beams
ROUNDS = 64  # of a prompt, at the most
TOKENS_PER_SECOND = {"cuda": 20_000, "cpu": 500}  # that are written, at the most


def said(parts: Parts, folder: Path, seconds: float) -> str:
    """The lines that stand in front. UsageError: memory or disk is too small."""
    kind = parts.kind
    least, usual = (_memory(parts, batch) for batch in (1, batch_of(parts)))
    free, disk, room = _free_memory(parts.device), _disk(parts, seconds), _free_disk(folder)
    if parts.on_gpu and least > free:
        raise UsageError(
            f"about {least / GB:.1f} GB of memory are needed on {parts.machine} beside the model, {free / GB:.1f} GB "
            "are free: end what else runs there, or take a smaller model"
        )
    if disk > room:
        raise UsageError(
            f"{folder} (--out) has {room / GB:.2f} GB free, and about {disk / GB:.2f} GB are needed: make room, or "
            "give another place"
        )
    split, whole = parts.split, sum(SHARES.values())
    shares = ", ".join(f"{name} {clock(seconds * share / whole)}" for name, share in SHARES.items())
    left_out = f"; {split.left_out} left out, near-twins of those" if split.left_out else ""
    return "\n".join(
        [
            f"{len(split)} prompts: {len(split.text)} for text, {len(split.rounds)} to learn from, {len(split.judge)} "
            f"to judge by{left_out}",
            f"time    {clock(seconds)}, on {parts.machine}: {shares}",
            f"memory  about {usual / GB:.2f} GB beside the model, of {free / GB:.2f} GB free on the {kind} now",
            f"disk    about {disk / GB:.2f} GB in {folder}, of {room / GB:.2f} GB that are free",
        ]
    )


def _memory(parts: Parts, batch: int) -> int:
    """Bytes beside the model, about: the larger of the caches that write and the training of the head."""
    return max(cache_bytes(parts, rows_of(parts)), training_bytes(parts, batch))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _disk(parts: Parts, seconds: float) -> int:
    """Bytes of the folder, about."""
    texts = TEXT_BYTES * TOKENS_PER_SECOND[parts.kind] * seconds * SHARES["text"] / sum(SHARES.values())
    rounds = ROUND_BYTES * ROUNDS * (len(parts.split.rounds) + len(parts.split.judge))
    return int(texts + rounds + 14 * head_weights(parts))  # 12 bytes a weight to go on from, 2 to use


def _free_disk(folder: Path) -> int:
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(place).free
