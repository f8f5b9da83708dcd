"""Networks of a comparison: RADAR's, for the ratio of tokens to time, and the published reward over its alpha."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.lab.processes import side_by_side
from radar import RadarPolicy
from radar.policy.base import StopPolicy
from radar.policy.baselines import Capped
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.policy import train_policy

__all__ = ["ALPHAS", "EPOCHS", "PUBLISHED_CALLS", "fit", "published", "published_options", "radar_options"]

ALPHAS = (0.01, 0.03, 0.06, 0.1, 0.15)  # published: 0.01 to 0.09, where good heads make it collapse
PUBLISHED_CALLS = 8  # at the most, as published
EPOCHS = 80  # 20 left the ratio objective short of a threshold on its own training rounds
SHARED: dict[str, Any] = {"batch_size": 256, "learning_rate": 1e-3, "held_out": 0.1, "progress": False}


def radar_options(epochs: int) -> dict[str, Any]:
    """How RADAR's network is trained."""
    return {**SHARED, "epochs": epochs, "objective": "ratio", "estimator": "exact", "entropy": 0.1}


def published_options(alpha: float, epochs: int, *, max_calls: int | None = PUBLISHED_CALLS) -> dict[str, Any]:
    """How the paper trains."""
    options = {**SHARED, "epochs": epochs, "objective": "paper", "estimator": "reinforce", "entropy": 0.0}
    options |= {"alpha": alpha}
    return options if max_calls is None else options | {"max_calls": max_calls}


def published(folder: Path) -> StopPolicy:
    """As the paper decodes: actions are drawn, eight calls at the most."""
    return Capped(RadarPolicy(folder, sample=True), PUBLISHED_CALLS)


def fit(
    train: RoundDataset, costs: CostTable, out: Path, wanted: Mapping[str, dict[str, Any]], *, workers: int = 1
) -> dict[str, str | None]:
    """Train networks to `out`/NAME, side by side in processes; returns how each collapsed, if it did."""
    calls = [(train, costs, out / name, options) for name, options in wanted.items()]
    return dict(zip(wanted, side_by_side(_train, calls, workers), strict=True))


def _train(train: RoundDataset, costs: CostTable, out: Path, options: dict[str, Any]) -> str | None:
    return train_policy(train, out, costs=costs, **options)["collapsed"]
