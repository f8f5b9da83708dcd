"""The fourth stage: what the parts of a round cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radar.engine.eager import EagerEngine
from radar.engine.graph import GraphEngine
from radar.fit.parts import Parts
from radar.fit.stages import Stage
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork
from radar.tools.costs import CostTable
from radar.tools.profile import cost_table, profile_round

__all__ = ["COSTS_FILE", "costs_of", "measure", "say_costs"]

COSTS_FILE = "costs.json"
CONTEXTS = (256, 1024)  # committed tokens
REPEATS = {"cuda": 20, "cpu": 3}


def measure(parts: Parts, stage: Stage, head: Path) -> dict[str, Any]:
    """A cost table in the stage's folder; decisions are a network's, of the size that is trained, and verifications of
    every number of nodes that it may choose."""
    decoder = parts.drafting(head)
    tree, repeats = decoder.tree, REPEATS[parts.kind]
    nodes = [n for n in tree.node_choices if parts.on_gpu or n <= tree.total_tokens]  # on a CPU every node is paid for
    decoder.policy = RadarPolicy(PolicyNetwork(tree.tree_top_k, nodes=nodes))
    engine = decoder.engine
    assert isinstance(engine, GraphEngine | EagerEngine)  # of one text
    prefixes = [min(one, decoder.max_length - tree.max_accepted) for one in CONTEXTS]
    profiles = [profile_round(engine, prefix=one, calls=tree.max_calls, repeats=repeats) for one in prefixes]
    for count in nodes:
        if count != tree.total_tokens:
            profiles += [
                profile_round(engine, prefix=one, calls=1, repeats=max(2, repeats // 3), nodes=count)
                for one in prefixes
            ]
    cost_table(profiles, device=parts.machine, pair=f"{parts.name} + the head of this fit").save(
        stage.folder / COSTS_FILE
    )
    one = profiles[0]
    return {"context": one.prefix, "draft_call": one.draft_step, "verify": one.verify, "decision": one.decision}


def costs_of(folder: Path) -> CostTable:
    """What was measured."""
    return CostTable.load(folder / COSTS_FILE, device=None)


def say_costs(result: dict[str, Any]) -> str:
    return f"a draft call takes {result['draft_call']:.3f} ms, a verification {result['verify']:.3f} ms"
