"""The fourth stage: what the parts of a round cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radar.decoder import RadarDecoder
from radar.engine.eager import EagerEngine
from radar.engine.graph import GraphEngine
from radar.fit.parts import Parts, called
from radar.fit.stages import Stage
from radar.policy.fitted import EAGLE_BEAMS
from radar.tools.costs import CostTable
from radar.tools.profile import RoundProfile, cost_table, median_round, network_to_time, profile_round

__all__ = ["costs_file", "costs_of", "measure", "say_costs"]

CONTEXTS = (256, 1024)  # committed tokens
REPEATS, FEWER = {"cuda": 20, "cpu": 2}, {"cuda": 6, "cpu": 5}  # of a whole round in a turn; of a verification
TURNS = {"cuda": 1, "cpu": 7}  # of all widths: the pace of a CPU changes


def costs_file(beams: int) -> str:
    """The name of the table of trees of such beams."""
    return f"{called('costs', beams)}.json"


def measure(parts: Parts, stage: Stage, head: Path, beams: Sequence[int]) -> dict[str, Any]:
    """A cost table for each width of beams in the stage's folder; decisions are a network's, of the size that is
    trained, and verifications of every number of nodes that it may choose. These do not depend on the beams: all tables
    have those of the first."""
    decoders = [parts.drafting(head, beams=one) for one in beams]
    tree = decoders[0].tree
    nodes = [n for n in tree.node_choices if parts.on_gpu or n <= tree.total_tokens]  # on a CPU every node is paid for
    for decoder in decoders:
        decoder.policy = network_to_time(decoder.tree, nodes)

    def time(decoder: RadarDecoder, context: int, **options: Any) -> RoundProfile:
        engine = decoder.engine
        assert isinstance(engine, GraphEngine | EagerEngine)  # of one text
        return profile_round(engine, prefix=min(context, decoder.max_length - tree.max_accepted), **options)

    whole = {"calls": tree.max_calls, "repeats": REPEATS[parts.kind]}
    turns = [[time(one, CONTEXTS[0], **whole) for one in decoders] for _ in range(TURNS[parts.kind])]
    rounds = [median_round(found) for found in zip(*turns, strict=True)]
    first, few = rounds[0], {"calls": 1, "repeats": FEWER[parts.kind]}
    verified = [time(decoders[0], context, nodes=count, **few) for context in CONTEXTS for count in nodes]
    for one, found in zip(beams, rounds, strict=True):
        deep = replace(found, decision=first.decision, choice=first.choice)
        pair = f"{parts.name} + the head of this fit, {one} beams"
        cost_table([deep, *verified], device=parts.machine, pair=pair).save(stage.folder / costs_file(one))
    return {
        "context": first.prefix,
        "draft_call": first.draft_step,
        "verify": first.verify,
        "decision": first.decision,
        "draft_calls": {str(one): found.draft_step for one, found in zip(beams, rounds, strict=True)},
    }


def costs_of(folder: Path, beams: int = EAGLE_BEAMS) -> CostTable:
    """What was measured of trees of such beams."""
    return CostTable.load(folder / costs_file(beams), device=None)


def say_costs(result: dict[str, Any]) -> str:
    each = result.get("draft_calls", {str(EAGLE_BEAMS): result["draft_call"]})  # a fit of before tried no others
    calls = ", ".join(f"{time:.3f} ms with {beams} beams" for beams, time in each.items())
    return f"a draft call takes {calls}, a verification {result['verify']:.3f} ms"
