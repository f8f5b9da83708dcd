"""What is known of each width of beams that a fit chooses among: recorded rounds, and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from radar.fit.costs import costs_of
from radar.fit.rounds import rounds_of
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

__all__ = ["Width", "alike", "widths_of"]


class Width(NamedTuple):
    """Rounds of trees of one width, and what these cost."""

    rounds: RoundDataset
    costs: CostTable

    @property
    def beams(self) -> int:
        return self.rounds.header.tree.tree_top_k


def widths_of(folder: Path, name: str, beams: Sequence[int]) -> list[Width]:
    """Of the fit in a folder, for one use of the rounds."""
    return [Width(rounds_of(folder / "rounds", name, one), costs_of(folder / "costs", one)) for one in beams]


def alike(widths: Sequence[Width]) -> list[Width]:
    """With the rounds of those prompts alone that were recorded for all: the same texts, so that speeds compare."""
    common = set.intersection(*(set(one.rounds.prompt.tolist()) for one in widths))
    kept = torch.tensor(sorted(common), dtype=torch.int64)
    return [one._replace(rounds=one.rounds.select(torch.isin(one.rounds.prompt, kept))) for one in widths]
