"""Let the trained target write: continuations of training prompts, as a token stream to train the draft head on.

A head that learns on the target's own text drafts longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bench.lab.recipes import Recipe, Size
from bench.lab.target import log

__all__ = ["write_text"]

BOS, USER, ASSISTANT, END = range(4)  # the tokenizer's special tokens come first
PYTHON_SHARE = 0.25
WIDTH = 192  # tokens of a prompt
PYTHON_WIDTH = 96  # of one that is raw text
Prompts = list[np.ndarray]


def write_text(data: Path, target: Path, out: Path, recipe: Recipe, size: Size, *, seconds: float) -> dict[str, Any]:
    """Write `out` (.npy). In the first pass over the prompts some batches are greedy, all others are sampled."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).to(device).eval()
    documents: list[np.ndarray] = []
    begun = time.monotonic()
    for prompts, first in _batches(data, size.write_batch, rng):
        greedy = first and rng.random() < recipe.greedy_share
        left = seconds - (time.monotonic() - begun)
        documents += _continue(model, prompts, 0.0 if greedy else rng.uniform(0.7, 1.0), size.write_tokens, left)
        spent = time.monotonic() - begun
        log(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.2f}M tokens, {spent:.1f} s")
        if spent >= seconds:
            break
    rng.shuffle(documents)
    np.save(out, np.concatenate(documents).astype(np.uint16))
    return {"documents": len(documents), "tokens": sum(map(len, documents))}


@torch.inference_mode()
def _continue(model: Any, prompts: Prompts, temperature: float, new_tokens: int, seconds: float) -> Prompts:
    """Each prompt with its continuation, up to and with the end token; a batch ends when its time does."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), END)
    for row, prompt in enumerate(prompts):  # padded on the left
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
    skipped = [width - len(prompt) for prompt in prompts]
    mask = torch.arange(width) >= torch.tensor(skipped)[:, None]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    rows = model.generate(
        ids.to(model.device), attention_mask=mask.long().to(model.device), max_new_tokens=new_tokens,
        max_time=max(1.0, seconds), pad_token_id=END, eos_token_id=END, **sampling,
    ).cpu().numpy()  # fmt: skip
    out = []
    for row, skip in zip(rows, skipped, strict=True):
        ends = np.flatnonzero(row[width:] == END)
        out.append(row[skip : width + int(ends[0]) + 1] if len(ends) else row[skip:])
    return out


def _batches(data: Path, batch: int, rng: np.random.Generator) -> Iterator[tuple[Prompts, bool]]:
    """(prompts, first pass) without end, rows of similar lengths together."""
    instruct, python = np.load(data / "instruct.npy"), np.load(data / "python.npy")
    first = True
    while True:
        prompts = _chats(instruct, rng)
        prompts += _windows(python, rng, int(len(prompts) * PYTHON_SHARE / (1 - PYTHON_SHARE)))
        prompts.sort(key=len)
        for index in rng.permutation(-(-len(prompts) // batch)):
            yield prompts[index * batch : (index + 1) * batch], first
        first = False


def _chats(stream: np.ndarray, rng: np.random.Generator) -> Prompts:
    """A prompt of every document: a chat up to the assistant's turn, or a part of a plain document."""
    starts = np.flatnonzero(stream == BOS)
    out = []
    for start, stop in zip(starts, [*starts[1:].tolist(), len(stream)], strict=True):
        document = stream[start:stop]
        turn = np.flatnonzero(document == ASSISTANT)
        cut = int(turn[0]) + 2 if len(turn) else int(rng.integers(2, max(3, min(WIDTH, len(document) * 2 // 3))))
        if 2 <= cut <= WIDTH:  # + 2: the line break after the turn belongs to the prompt
            out.append(document[:cut])
    return out


def _windows(stream: np.ndarray, rng: np.random.Generator, count: int) -> Prompts:
    """`count` windows of 8 tokens and more, each behind a start token."""
    out = []
    for start in rng.integers(0, len(stream) - PYTHON_WIDTH, size=count):
        window = stream[start : start + rng.integers(8, PYTHON_WIDTH)]
        window = window[window >= 4]  # no start or end in the middle
        out.append(np.concatenate([[BOS], window]).astype(stream.dtype))
    return out
