"""The fifth stage: rules are tuned, and RADAR's network trained, on recorded rounds and these costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from radar.fit.stages import Stage
from radar.fit.widths import Width, alike
from radar.policy.base import Threshold
from radar.policy.by_mass import NodesByMass
from radar.policy.fitted import EAGLE_BEAMS
from radar.replay.evaluate import Outcome, is_ahead, outcome_of
from radar.replay.replay import tune
from radar.train.contenders import MASSES, tune_nodes_by_mass
from radar.train.policy import too_few, train_policy
from radar.train.run import OtherRun

__all__ = ["learn", "network_beams", "rules_of", "say_policy"]


def learn(stage: Stage, widths: Sequence[Width]) -> dict[str, Any]:
    """The rules of each width (see `rules_of`), tuned on the prompts that all have, and a network in the stage's folder
    for the first width, EAGLE-3's, unless another's rules are ahead there by more than chance, as the judge will demand
    (see `network_beams`), or in words why there is none to be used."""
    shared = alike(widths)
    tuned = [_rules(one) for one in shared]
    best, outcome = widths[0], tuned[0][1]
    for one, (_, other) in zip(widths, tuned, strict=True):
        if is_ahead(other, outcome):
            best, outcome = one, other
    found: dict[str, Any] = {"rules": [told for told, _ in tuned], "beams": best.beams}
    found |= {"why_no_network": None, "epochs": 0}
    found |= {"prompts": _prompts(shared[0]), "network_prompts": _prompts(best)}
    if few := too_few(best.rounds):
        return found | {"why_no_network": few}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the result
        how: dict[str, Any] = {"costs": best.costs, "progress": False}
        try:
            result = train_policy(best.rounds, stage.folder, seconds=max(stage.left(), 0.0), **how)
        except OtherRun:  # of an earlier release, which an interruption has left
            result = train_policy(best.rounds, stage.folder, seconds=max(stage.left(), 0.0), resume=False, **how)
    collapsed = result["collapsed"]
    why = f"it collapsed: it {collapsed}, whatever the scores" if collapsed else None
    return found | {"why_no_network": why, "epochs": result["epochs"]}


def _prompts(width: Width) -> int:
    """That have rounds."""
    return len(width.rounds.prompt.unique())


def _rules(width: Width) -> tuple[dict[str, Any], Outcome]:
    """The threshold's mass, and the same with a choice of nodes, as `policy_of` takes it, if that is faster; and what
    the rounds come to by the faster one."""
    alone = tune(Threshold, MASSES, width.rounds, width.costs)
    best = tune_nodes_by_mass(width.rounds, width.costs, alone)
    rule = best.policy
    told: dict[str, Any] = {"beams": width.beams, "mass": alone.value, "nodes_by_mass": None}
    if isinstance(rule, NodesByMass):
        assert isinstance(rule.policy, Threshold)
        told["nodes_by_mass"] = {"mass": rule.policy.mass, "nodes": list(rule.nodes), "prices": list(rule.prices)}
    return told, outcome_of(rule, width.rounds, width.costs)


def rules_of(result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Of what `learn` found, by their beams: `mass`, a threshold's, and `nodes_by_mass`, as `policy_of` takes it, or
    None. A fit of before has those of one width, or no `nodes_by_mass`."""
    return {one.get("beams", EAGLE_BEAMS): one for one in result.get("rules", [result])}


def network_beams(result: dict[str, Any]) -> int | None:
    """Of what `learn` found, the beams of the network; None: there is none to be used."""
    return result.get("beams", EAGLE_BEAMS) if result["why_no_network"] is None else None


def say_policy(result: dict[str, Any]) -> str:
    network = result["why_no_network"] or f"a network, {result['epochs']} epochs"
    rules = ", ".join(_said(beams, one) for beams, one in rules_of(result).items())
    return f"{rules}; {network}"


def _said(beams: int, told: dict[str, Any]) -> str:
    rule = "" if told.get("nodes_by_mass") is None else " and one rule that chooses nodes"
    return f"Threshold({told['mass']:g}){rule} with {beams} beams"
