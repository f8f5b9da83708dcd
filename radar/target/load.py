"""Targets and tokenizers from folders and hub names."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from radar.errors import UsageError

__all__ = ["load_model", "load_tokenizer"]


def load_model(path: str, *, device: torch.device, dtype: torch.dtype | None, progress: bool = True) -> Any:
    """`AutoModelForCausalLM` in eval mode on one device; dtype None keeps the checkpoint's."""
    bars: Any = logging  # its functions have no annotations
    shown = bars.is_progress_bar_enabled()
    if not progress:
        bars.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto")
    except Exception as error:  # no such model, another kind of file, one that is cut off: each library has its own
        raise UsageError(
            f"no transformers model at {path!r} that can be loaded: give a folder or a hub name ({error})"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    return model.to(device).eval()


def load_tokenizer(path: str) -> Any:
    """The tokenizer stored beside a model."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise UsageError(f"no tokenizer at {path!r}: its files belong beside the model's ({error})") from error
