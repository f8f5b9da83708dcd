"""The first stage: the model writes the text that its head is trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from radar.errors import UsageError
from radar.files import replacing
from radar.fit.head import window_of
from radar.fit.parts import Parts
from radar.fit.stages import Stage
from radar.target.digest import weights_digest
from radar.target.families import cache_heads
from radar.tools.documents import encode_file
from radar.tools.prompts import PromptLine, encode_prompt
from radar.tools.writing import write_texts

__all__ = ["TOKENS_FILE", "cache_bytes", "held_of", "rows_of", "say_text", "write"]

ROWS = {"cuda": (128, 64, 32, 16, 8), "cpu": (8,)}  # texts at once: the first that memory takes
FREE = 0.5  # of the memory that is free
HELD = 1024  # tokens of a text, at the mean of all at once
TOKENS_FILE = "tokens.npy"
MOST_TOKENS, LEAST_TOKENS = 512, 32  # of an answer
TEXTS = 24  # at least, in the time: where that is short, answers are
PASSES = 9  # over the prompts: the first is greedy, the others are sampled
TEMPERATURE = 0.8
GREEDY_SHARE = 2 / 3  # of the time, if the prompts take that long
LEAST_WINDOWS = 2
GOOD = 100_000  # tokens below which a head learns little


def write(parts: Parts, stage: Stage) -> dict[str, Any]:
    """Texts in folders `pass-0`, ..., and all their tokens in one file, int32.

    Raises:
        UsageError: all texts that the prompts gave are too little to train on.
    """
    decoder = parts.plain(rows=(rows := rows_of(parts)), held=held_of(parts, rows))
    limit = stage.settled("max_new_tokens", lambda: _affordable(decoder, parts, stage))
    least, number = LEAST_WINDOWS * window_of(parts), 0
    texts: dict[Path, int] = {}
    while number < PASSES:
        folder = stage.folder / f"pass-{number}"
        lines = parts.split.text if number % 2 == 0 else parts.split.text[::-1]  # what the last pass did not get to
        written = write_texts(
            decoder,
            lines,
            folder,
            max_new_tokens=limit,
            temperature=TEMPERATURE if number else 0.0,
            seed=number,
            seconds=max(stage.left() * (1.0 if number else GREEDY_SHARE), 1.0),
            metadata={"target": weights_digest(parts.model)},
            has_room=True,
            progress=False,
        )
        texts[folder] = written["texts"]
        if (is_over := stage.left() <= 0) and len(ids := encode(parts, texts)) >= least:
            break
        if not is_over or texts[folder] == len(lines):
            number += 1
    else:
        ids = encode(parts, texts)
        if len(ids) < least:
            raise UsageError(
                f"{len(parts.split.text)} prompts gave {len(ids)} tokens of text, which is too little to train on: "
                f"{least} are the least, {GOOD} make a head. Give more prompts, or such that get longer answers"
            )
    with replacing(stage.folder) as place:
        np.save(place / TOKENS_FILE, ids)
    return {"texts": sum(texts.values()), "tokens": len(ids), "max_new_tokens": limit, "passes": len(texts)}


def rows_of(parts: Parts) -> int:
    """Texts at once, as the device's memory is now."""
    sizes = ROWS[parts.kind]
    if not parts.on_gpu:
        return sizes[0]
    free = torch.cuda.mem_get_info(parts.device)[0]
    return next((one for one in sizes if cache_bytes(parts, one) < FREE * free), sizes[-1])


def cache_bytes(parts: Parts, rows: int) -> int:
    """What the caches of so many texts take."""
    heads, head_dim = cache_heads(parts.model)
    token = 2 * int(parts.model.config.num_hidden_layers) * heads * head_dim * int(parts.model.dtype.itemsize)
    return held_of(parts, rows) * token


def held_of(parts: Parts, rows: int) -> int:
    """Tokens that so many texts hold together."""
    return rows * min(HELD, parts.max_length)


def encode(parts: Parts, texts: Mapping[Path, int]) -> npt.NDArray[np.int32]:
    """Tokens of the folders that hold texts, one text behind the other."""
    tokenizer, there = parts.tokenizer, [folder for folder, count in texts.items() if count]
    read = [encode_file(one, tokenizer.encode, eos_token_id=tokenizer.eos_token_id) for one in there]
    return np.concatenate([np.zeros(0, dtype=np.int32), *read])


def say_text(result: dict[str, Any]) -> str:
    few = f", less than the {GOOD:,} that a head needs" if result["tokens"] < GOOD else ""
    return f"{result['tokens']:,} tokens of {result['texts']:,} texts{few}"


def _affordable(decoder: Any, parts: Parts, stage: Stage) -> int:
    """Tokens of an answer, for so many texts in the time: by what all rows write in a moment."""
    rows = [_ids(line, parts) for line in parts.split.text[: decoder.max_batch_size]]
    count = 64 if parts.on_gpu else 8
    decoder.generate(rows, max_new_tokens=2, eos_token_id=())  # captures and compiles
    begun = time.monotonic()
    decoder.generate(rows, max_new_tokens=count, eos_token_id=())
    rate = count * len(rows) / (time.monotonic() - begun)
    return int(min(max(rate * max(stage.left(), 0.0) / TEXTS, LEAST_TOKENS), MOST_TOKENS, parts.max_length // 2))


def _ids(line: PromptLine, parts: Parts) -> list[int]:
    return encode_prompt(line, parts.tokenizer)
