"""The fifth stage: a threshold is tuned, and RADAR's network trained, on recorded rounds and these costs."""

from __future__ import annotations

import warnings
from typing import Any

from radar.fit.stages import Stage
from radar.policy.base import Threshold
from radar.replay.replay import tune
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.contenders import MASSES
from radar.train.policy import too_few, train_policy

__all__ = ["learn", "say_policy"]


def learn(stage: Stage, rounds: RoundDataset, costs: CostTable) -> dict[str, Any]:
    """The threshold's mass, and the network in the stage's folder, or in words why there is none to be used."""
    mass = tune(Threshold, MASSES, rounds, costs).value
    if few := too_few(rounds):
        return {"mass": mass, "why_no_network": few, "epochs": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the result
        result = train_policy(rounds, stage.folder, costs=costs, progress=False, seconds=max(stage.left(), 0.0))
    collapsed = result["collapsed"]
    why = f"it collapsed: it {collapsed}, whatever the scores" if collapsed else None
    return {"mass": mass, "why_no_network": why, "epochs": result["epochs"]}


def say_policy(result: dict[str, Any]) -> str:
    network = result["why_no_network"] or f"a network, {result['epochs']} epochs"
    return f"Threshold({result['mass']:g}); {network}"
