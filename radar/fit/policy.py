"""The fifth stage: rules are tuned, and RADAR's network trained, on recorded rounds and these costs."""

from __future__ import annotations

import warnings
from typing import Any

from radar.fit.stages import Stage
from radar.policy.base import Threshold
from radar.policy.by_mass import NodesByMass
from radar.replay.replay import tune
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.contenders import MASSES, tune_nodes_by_mass
from radar.train.policy import too_few, train_policy
from radar.train.run import OtherRun

__all__ = ["learn", "say_policy"]


def learn(stage: Stage, rounds: RoundDataset, costs: CostTable) -> dict[str, Any]:
    """The threshold's mass, the same with a choice of nodes, as `policy_of` takes it, if there is one to make, and the
    network in the stage's folder, or in words why there is none to be used."""
    alone = tune(Threshold, MASSES, rounds, costs)
    rule = tune_nodes_by_mass(rounds, costs, alone).policy
    found: dict[str, Any] = {"mass": alone.value, "nodes_by_mass": None, "why_no_network": None, "epochs": 0}
    if isinstance(rule, NodesByMass):
        assert isinstance(rule.policy, Threshold)
        found["nodes_by_mass"] = {"mass": rule.policy.mass, "nodes": list(rule.nodes), "prices": list(rule.prices)}
    if few := too_few(rounds):
        return found | {"why_no_network": few}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the result
        how: dict[str, Any] = {"costs": costs, "progress": False}
        try:
            result = train_policy(rounds, stage.folder, seconds=max(stage.left(), 0.0), **how)
        except OtherRun:  # of an earlier release, which an interruption has left
            result = train_policy(rounds, stage.folder, seconds=max(stage.left(), 0.0), resume=False, **how)
    collapsed = result["collapsed"]
    why = f"it collapsed: it {collapsed}, whatever the scores" if collapsed else None
    return found | {"why_no_network": why, "epochs": result["epochs"]}


def say_policy(result: dict[str, Any]) -> str:
    network = result["why_no_network"] or f"a network, {result['epochs']} epochs"
    rule = "" if result["nodes_by_mass"] is None else ", one rule that chooses nodes"
    return f"Threshold({result['mass']:g}){rule}; {network}"
