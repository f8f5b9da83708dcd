"""What a fit will take, said beforehand: time, memory, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from radar.errors import UsageError
from radar.fit.head import training_bytes
from radar.fit.parts import Parts
from radar.fit.stages import SHARES, clock
from radar.fit.text import ROWS

__all__ = ["check_disk", "disk_bytes", "memory_bytes", "said"]

GB = 1e9
TEXT_BYTES, ROUND_BYTES = 9, 1200  # of a token, with its id; of a recorded round
TOKENS_PER_SECOND = {"cuda": 20_000, "cpu": 500}  # that are written at the most


def memory_bytes(parts: Parts) -> int:
    """Of the device, about: the model, and the larger of the caches that write and the training of the head."""
    c = parts.model.config
    weights = sum(one.numel() * one.element_size() for one in parts.model.parameters())
    head_dim = int(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    token = 2 * int(c.num_hidden_layers) * int(c.num_key_value_heads) * head_dim * parts.model.dtype.itemsize
    caches = (ROWS[parts.device.type] + 1) * parts.max_length * token
    return weights + max(caches, training_bytes(parts, 1))


def disk_bytes(parts: Parts, seconds: float) -> int:
    """Of the folder, about."""
    c = parts.model.config
    texts = TEXT_BYTES * TOKENS_PER_SECOND[parts.device.type] * seconds * SHARES["text"] / sum(SHARES.values())
    hidden = int(c.hidden_size)
    head = 3 * hidden * hidden + 3 * hidden * int(c.intermediate_size) + 8 * hidden * hidden
    head += hidden * min(32000, int(c.vocab_size))
    rounds = ROUND_BYTES * 64 * (len(parts.split.rounds) + len(parts.split.judge))
    return int(texts + 14 * head + rounds)  # 12 bytes a weight to go on from, 2 to use


def check_disk(folder: Path, needed: int) -> int:
    """Bytes that are free where the folder is or will be. UsageError: less than is needed."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"{folder} (--out) has {free / GB:.2f} GB free, and about {needed / GB:.2f} GB are needed: make room, or "
            "give another place"
        )
    return free


def said(parts: Parts, folder: Path, seconds: float) -> str:
    """The lines that stand in front. UsageError: memory or disk is too small."""
    memory, disk = memory_bytes(parts), disk_bytes(parts, seconds)
    free, where = _free_memory(parts.device)
    if parts.on_gpu and memory > free:
        raise UsageError(
            f"about {memory / GB:.1f} GB of memory are needed on {parts.machine}, {free / GB:.1f} GB are free: end "
            "what else runs there, or take a smaller model"
        )
    room = check_disk(folder, disk)
    split, whole = parts.split, sum(SHARES.values())
    shares = ", ".join(f"{name} {clock(seconds * share / whole)}" for name, share in SHARES.items())
    left_out = f", {split.left_out} left out" if split.left_out else ""
    return "\n".join(
        [
            f"prompts {len(split.text)} for text, {len(split.rounds)} for rounds, {len(split.judge)} to judge by"
            f"{left_out}",
            f"time    {clock(seconds)} at the most, on {parts.machine}: {shares}",
            f"memory  from {memory / GB:.2f} GB on, of {free / GB:.2f} GB that are free {where}",
            f"disk    about {disk / GB:.2f} GB in {folder}, of {room / GB:.2f} GB that are free",
        ]
    )


def _free_memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "on the GPU"
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "in the machine"
