"""The second stage, which gets most of the time: an EAGLE-3 head on the model's own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.fit.parts import Parts
from radar.fit.stages import Stage
from radar.target.positions import position_limit
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture

__all__ = ["batch_of", "head_weights", "say_head", "train", "training_bytes", "window_of"]

CALLS = 7  # draft calls that training plays
LENGTH = {"cuda": 512, "cpu": 256}  # tokens of a window
BATCHES = {"cuda": (24, 16, 8, 4, 2, 1), "cpu": (2,)}  # windows a step: the first that memory takes
RATE = {"cuda": 8e-4, "cpu": 1e-3}  # peak of the learning rate
WARMUP = {"cuda": 100, "cpu": 10}  # steps: a CPU makes few
COVERED, MOST_IDS = 0.999, 32000  # of the text, by the ids that the head proposes, and how many these are at most
FREE = 0.7  # of the memory that is free


def window_of(parts: Parts) -> int:
    """Tokens that a window takes."""
    limit = position_limit(parts.model.config)
    wanted = LENGTH[parts.kind] + CALLS
    return wanted if limit is None else min(wanted, limit)


def training_bytes(parts: Parts, batch: int) -> int:
    """What a step takes, about: the target's scores and the head's of every call, attention, and the head's state."""
    c = parts.model.config
    length, ids = window_of(parts), min(MOST_IDS, int(c.vocab_size))
    scores = batch * length * (int(c.vocab_size) * 4 + ids * (4 + 8 * CALLS))
    attention = batch * int(c.num_attention_heads) * length * length * 12 * CALLS
    return scores + attention + 16 * head_weights(parts)


def head_weights(parts: Parts) -> int:
    """Of the largest head that is trained."""
    c = parts.model.config
    with torch.device("meta"):
        head = Eagle3Draft(DraftConfig.of_target(c, draft_vocab_size=min(MOST_IDS, int(c.vocab_size))))
    return sum(one.numel() for one in head.parameters())


def train(parts: Parts, stage: Stage, text: Path) -> dict[str, Any]:
    """The head, in the stage's folder; what `train_draft` returns, and the ids that it proposes."""
    tokens = np.load(text)
    vocabulary = int(parts.model.config.vocab_size)
    kind = parts.kind
    batch = stage.settled("batch", lambda: batch_of(parts))
    options = TrainingOptions(
        seconds=stage.settled("train_seconds", lambda: max(stage.left(), 1.0)),
        whole_seconds=True,
        batch_size=batch,
        length=window_of(parts) - CALLS,
        lr=RATE[kind],
        warmup=WARMUP[kind],
        ttt_length=CALLS,
        progress=False,
    )
    mixture = TokenMixture([tokens])
    ids = _proposed(mixture, vocabulary)
    config = DraftConfig.of_target(parts.model.config, draft_vocab_size=ids)
    result = train_draft(parts.model, mixture, stage.folder, config=config, options=options)
    return {**result, "draft": stage.folder.name, "draft_vocab_size": ids}


def say_head(result: dict[str, Any]) -> str:
    first, last = (f"{result['agreement'][call]:.2f}" for call in (0, -1))
    return f"{result['steps']:,} steps, agrees with the target at {first} of the positions, {last} in call {CALLS}"


def batch_of(parts: Parts) -> int:
    """Windows a step, as the device's memory is now."""
    sizes = BATCHES[parts.kind]
    if not parts.on_gpu:
        return sizes[0]
    torch.cuda.empty_cache()  # of what wrote the text
    free = torch.cuda.mem_get_info(parts.device)[0]
    return next((one for one in sizes if training_bytes(parts, one) < FREE * free), sizes[-1])


def _proposed(text: TokenMixture, vocabulary: int) -> int:
    """Ids that a head proposes: the most frequent that cover the text, in thousands of 1,024. Rarer ones cost time in
    every draft call and are hardly ever right."""
    shares = np.sort(text.frequencies(vocabulary))[::-1].cumsum()
    wanted = int((shares < COVERED).sum()) + 1
    return min(-(-wanted // 1024) * 1024, MOST_IDS, vocabulary)
