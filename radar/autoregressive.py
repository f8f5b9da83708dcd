"""The baseline: the target alone, one token a pass, through the same cache and attention as RadarDecoder."""

from __future__ import annotations

from typing import Any

import torch

from radar.engine.prefill import PREFILL_ROWS, prefill
from radar.generation import Decoder, end_token_ids
from radar.metrics import Round, Stopwatch
from radar.target import TargetModel, default_max_length

__all__ = ["AutoregressiveDecoder"]


class AutoregressiveDecoder(Decoder):
    """Plain greedy decoding with RadarDecoder's interface: the denominator of every speed-up.

    Args:
        model: a loaded transformers causal language model of a supported family.
        tokenizer: its tokenizer; None for token ids only.
        max_length: tokens that the cache holds, prompt and output together; None: 2048, or the model's positions.
    """

    engine_name = "eager"

    def __init__(self, model: Any, *, tokenizer: Any = None, max_length: int | None = None) -> None:
        max_length = default_max_length(model) if max_length is None else max_length
        self.target = TargetModel(model, max_length=max_length, max_rows=PREFILL_ROWS, tap_layers=())
        self.model = model
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=self.target.device)
        self._length = 0  # of the committed text, as the host knows it
        super().__init__(
            tokenizer=tokenizer,
            eos_token_ids=end_token_ids(model, tokenizer),
            max_length=max_length,
            vocab_size=self.target.vocab_size,
        )

    def _start(self, input_ids: list[int]) -> Round:
        watch = Stopwatch()
        self.target.cache.reset()
        token, _ = prefill(self.target, torch.tensor([input_ids], device=self.target.device))
        self._token.copy_(token[:, None])
        self._length = len(input_ids)
        tokens = token.tolist()
        watch.lap("prefill")
        return Round(tokens, is_prefill=True, seconds=watch.seconds)

    def _round(self) -> Round:
        watch = Stopwatch()
        self._length += 1
        self.target.cache.set_window(self._length)
        out = self.target.forward_chain(self._token)
        self.target.advance(1)
        self._token.copy_(self.target.logits(out.hidden_states).argmax(dim=-1))
        tokens = self._token[0].tolist()
        watch.lap("verify")
        return Round(tokens, seconds=watch.seconds)
