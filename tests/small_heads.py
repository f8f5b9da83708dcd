"""A tiny target, text and options to train a draft head with."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from radar.draft.config import DraftConfig
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture

VOCAB, HIDDEN, END = 64, 32, 3
CONFIG = DraftConfig(
    hidden_size=HIDDEN, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    vocab_size=VOCAB, draft_vocab_size=24, target_hidden_size=HIDDEN,
)  # fmt: skip
OPTIONS = TrainingOptions(steps=12, batch_size=4, length=12, lr=3e-3, warmup=2, ttt_length=3, progress=False)
HEAD = ["config.json", "model.safetensors", "training.json", "training.pt"]  # the files of a finished head


def small_target(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": END,
        "initializer_range": 0.3,  # sharp enough to have something to predict
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).requires_grad_(False)


def small_text() -> TokenMixture:
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.1, size=3000) + 3, VOCAB - 1)  # skewed, and without the end token
    return TokenMixture([ids[:2000].astype(np.uint16), torch.from_numpy(ids[2000:])], [0.7, 0.3])


def train(out: Path, options: TrainingOptions = OPTIONS, **others: Any) -> dict[str, Any]:
    """`train_draft` of the small parts, whichever are not given."""
    given = {"model": small_target(), "text": small_text(), "config": CONFIG} | others
    return train_draft(given.pop("model"), given.pop("text"), out, options=options, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, *, presses: int = 1, number: int = signal.SIGINT) -> None:
    """Send a signal in the midst of a step."""
    original = TokenMixture.windows

    def windows(self: TokenMixture, rows: int, length: int, seed: tuple[int, ...]) -> Tensor:
        for _ in range(presses * (seed[-1] == step)):
            signal.raise_signal(number)
        return original(self, rows, length, seed)

    monkeypatch.setattr(TokenMixture, "windows", windows)
