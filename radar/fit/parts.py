"""What the stages of a fit share: the model, its tokenizer, the prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from radar.decoder import AutoregressiveDecoder, RadarDecoder
from radar.draft.fit import default_tree
from radar.fit.split import Split
from radar.policy.base import FixedDepth, StopPolicy
from radar.policy.fitted import EAGLE_BEAMS
from radar.tools.machine import device_name

__all__ = ["BEAMS", "EAGLE_CALLS", "Parts", "called"]

EAGLE_CALLS = 8  # EAGLE-3's
BEAMS = (EAGLE_BEAMS, 16)
"""Widths of trees that are tried: nodes that a draft call expands."""


def called(name: str, beams: int) -> str:
    """The name of what is of trees of such beams: of others than EAGLE-3's it says so."""
    return name if beams == EAGLE_BEAMS else f"{name}-{beams}"


@dataclass(frozen=True)
class Parts:
    """Loaded once, for all stages.

    Attributes:
        name: of the model, as the user gave it.
        max_length: tokens of the caches.
        split: the prompts, by their uses.
    """

    name: str
    model: Any
    tokenizer: Any
    max_length: int
    split: Split

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def kind(self) -> str:
        """Of the device, by which sizes are chosen: "cuda", or "cpu" for all else."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def machine(self) -> str:
        """The hardware's name."""
        return device_name(self.device)

    def plain(self, *, rows: int = 1, held: int | None = None) -> AutoregressiveDecoder:
        """Decodes without drafts, `rows` texts at once, which hold so many tokens together."""
        return AutoregressiveDecoder(
            self.model,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            max_batch_size=rows,
            cache_tokens=held,
        )

    def drafting(
        self, head: Path, *, beams: int = EAGLE_BEAMS, policy: StopPolicy | None = None, engine: str | None = None
    ) -> RadarDecoder:
        """Decodes with the head, in trees of such beams, drafts in every round."""
        return RadarDecoder(
            self.model,
            tokenizer=self.tokenizer,
            draft=head,
            policy=policy or FixedDepth(EAGLE_CALLS),
            tree=replace(default_tree(self.device), tree_top_k=beams),
            max_length=self.max_length,
            engine=engine,
            fallback=False,
        )
