"""Record rounds of a small pair on sets of prompts.

The wide pair makes the same rounds, so the cheap ones serve to train its policies and to replay them. Several processes
share the work; each writes its own files, and the same call goes on where an earlier one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch

from bench.lab.pairs import load_pair
from bench.lab.sets import TRAIN, TREE, files_of, fitting
from radar import FixedDepth, RadarDecoder
from radar.replay.full_round import FullRounds
from radar.replay.record import LANES, record
from radar.tools.prompts import PromptLine

__all__ = ["record_share"]

STEP = 16  # prompts between two looks at the clock


def record_share(
    pair: Path, out: Path, sets: Mapping[str, Sequence[PromptLine]], temperatures: Sequence[float], new_tokens: int,
    max_length: int, seconds: float, share: tuple[int, int],
) -> bool:  # fmt: skip
    """Record this process's share of every set at every temperature; False: the time was up before that.

    Args:
        pair: folder of the small pair.
        out: folder of the rounds. ValueError: it was begun with another number of shares.
        sets: prompts by set, those of the tasks among them (`bench.lab.sets`).
        share: this process, and how many there are.
    """
    deadline = time.monotonic() + seconds
    index, count = share
    out.mkdir(parents=True, exist_ok=True)
    if any(not file.name.endswith(f"-of-{count}") for file in out.iterdir()):
        raise ValueError(f"{out} was begun with another number of shares than {count}: use that, or a new folder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = load_pair(pair, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    decoder = RadarDecoder(
        small.model, draft=small.draft, tokenizer=small.tokenizer, policy=FixedDepth(1), max_length=max_length,
        tree=TREE, engine="eager", fallback=False,
    )  # fmt: skip
    lanes = LANES if device.type == "cuda" else 1
    sources: dict[tuple[float, bool], list[FullRounds]] = {}
    for temperature, (name, lines) in product(temperatures, sets.items()):
        limits = {"new_tokens": new_tokens, "max_length": max_length}
        pairs = [(one.text, ids) for one in lines for ids in fitting([one], small.tokenizer, **limits)][index::count]
        every = name != TRAIN  # what judges is replayed as it would be decoded
        if (temperature, every) not in sources:  # the sets stand in this order: the others are done with
            sources = {
                (temperature, every): [FullRounds(decoder, temperature, every_token=every) for _ in range(lanes)]
            }
        texts, prompts = [text for text, _ in pairs], [ids for _, ids in pairs]
        for done in range(STEP, len(prompts) + STEP, STEP):
            if time.monotonic() > deadline:
                return False
            record(
                decoder, prompts[:done], files_of(out, name, temperature, f"{index}-of-{count}"),
                texts=texts, max_new_tokens=new_tokens, temperature=temperature, seed=index, every_token=every,
                progress=False, sources=sources[temperature, every],
            )  # fmt: skip
    return True
