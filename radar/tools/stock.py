"""The target as transformers runs it: what texts of this package are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["StockModel"]


class StockModel:
    """A model's own `generate`, without sampling, under its own generation config.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, which `generate` needs for the stop strings of a generation config.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.dtype: torch.dtype = model.dtype
        self._model = model
        self._options = {"do_sample": False, "return_dict_in_generate": True, "tokenizer": tokenizer}
        config = model.generation_config
        if config.pad_token_id is None:  # one row is never padded, but not to name it brings a warning for every text
            ends = config.eos_token_id
            self._options["pad_token_id"] = ends[0] if isinstance(ends, list) else ends

    def text(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """The new tokens, an end token included if one was reached."""
        ids: list[int] = self._generate(prompt, max_new_tokens=max_new_tokens).sequences[0, len(prompt) :].tolist()
        return ids

    def scores(self, text: Sequence[int]) -> Tensor:
        """The next token's logits [V], behind the processors of the generation config, from one pass over the text."""
        row: Tensor = self._generate(text, max_new_tokens=1, output_scores=True).scores[0][0]
        return row

    def _generate(self, prompt: Sequence[int], **options: Any) -> Any:
        ids = torch.tensor([list(prompt)], device=self._model.device)
        return self._model.generate(ids, attention_mask=torch.ones_like(ids), **self._options, **options)
