"""The fourth stage: what the parts of a round cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radar.engine.eager import EagerEngine
from radar.engine.graph import GraphEngine
from radar.fit.parts import Parts, called
from radar.fit.stages import Stage
from radar.policy.fitted import EAGLE_BEAMS
from radar.tools.costs import CostTable
from radar.tools.profile import RoundProfile, cost_table, network_to_time, profile_round

__all__ = ["costs_file", "costs_of", "measure", "say_costs"]

CONTEXTS = (256, 1024)  # committed tokens
REPEATS = {"cuda": 20, "cpu": 3}


def costs_file(beams: int) -> str:
    """The name of the table of trees of such beams."""
    return f"{called('costs', beams)}.json"


def measure(parts: Parts, stage: Stage, head: Path, beams: Sequence[int]) -> dict[str, Any]:
    """A cost table for each width of beams in the stage's folder; decisions are a network's, of the size that is
    trained, and verifications of every number of nodes that it may choose. A verification does not depend on the beams:
    all tables have those of the first."""
    verified: list[RoundProfile] = []
    calls = {}
    for one in beams:
        rounds = _profiles(parts, head, one, verifications=not verified)
        verified = verified or rounds
        pair = f"{parts.name} + the head of this fit, {one} beams"
        cost_table([*rounds, *verified], device=parts.machine, pair=pair).save(stage.folder / costs_file(one))
        calls[str(one)] = rounds[0].draft_step
    first = verified[0]
    return {
        "context": first.prefix,
        "draft_call": first.draft_step,
        "verify": first.verify,
        "decision": first.decision,
        "draft_calls": calls,
    }


def _profiles(parts: Parts, head: Path, beams: int, *, verifications: bool) -> list[RoundProfile]:
    """Of whole rounds, the shortest context first; with the verifications of all contexts and numbers of nodes."""
    decoder = parts.drafting(head, beams=beams)
    tree, repeats = decoder.tree, REPEATS[parts.kind]
    nodes = [n for n in tree.node_choices if parts.on_gpu or n <= tree.total_tokens]  # on a CPU every node is paid for
    decoder.policy = network_to_time(tree, nodes)
    engine = decoder.engine
    assert isinstance(engine, GraphEngine | EagerEngine)  # of one text
    prefixes = [min(one, decoder.max_length - tree.max_accepted) for one in CONTEXTS]
    if not verifications:
        return [profile_round(engine, prefix=prefixes[0], calls=tree.max_calls, repeats=repeats)]
    profiles = [profile_round(engine, prefix=one, calls=tree.max_calls, repeats=repeats) for one in prefixes]
    for count in nodes:
        if count != tree.total_tokens:
            profiles += [
                profile_round(engine, prefix=one, calls=1, repeats=max(2, repeats // 3), nodes=count)
                for one in prefixes
            ]
    return profiles


def costs_of(folder: Path, beams: int = EAGLE_BEAMS) -> CostTable:
    """What was measured of trees of such beams."""
    return CostTable.load(folder / costs_file(beams), device=None)


def say_costs(result: dict[str, Any]) -> str:
    each = result.get("draft_calls", {str(EAGLE_BEAMS): result["draft_call"]})  # a fit of before tried no others
    calls = ", ".join(f"{time:.3f} ms with {beams} beams" for beams, time in each.items())
    return f"a draft call takes {calls}, a verification {result['verify']:.3f} ms"
