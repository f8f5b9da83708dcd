"""The sixth stage: which policy in trees of which beams is the fastest on prompts that nothing has seen, and what
decoding with it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from radar.fit.parts import EAGLE_CALLS, Parts
from radar.fit.policy import network_beams, rules_of
from radar.fit.stages import Stage
from radar.fit.widths import Width, alike
from radar.metrics import DecodeMetrics, merge
from radar.policy.base import StopPolicy
from radar.policy.fitted import EAGLE_BEAMS, policy_of
from radar.replay.evaluate import Evaluation, Outcome, evaluate, is_ahead, outcome_of, render, speed_ratio
from radar.tools.compare import Contender
from radar.tools.prompts import encode_prompt
from radar.train.contenders import EAGLE3, NODES_BY_MASS

__all__ = ["judge", "say_judge"]

THRESHOLD, NETWORK = "tuned threshold", "RADAR"
PLAIN = "without drafts"
FEWEST = 2  # prompts that are decoded, whatever the clock says


class Entry(NamedTuple):
    """What may be kept: a policy, as `policy_of` takes it, in trees of one width."""

    name: str
    told: dict[str, Any]
    policy: StopPolicy
    width: Width
    outcome: Outcome
    is_network: bool


def judge(
    parts: Parts,
    stage: Stage,
    folder: Path,
    learned: dict[str, Any],
    widths: Sequence[Width],
    *,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Replay rounds of held-out prompts under every policy, and decode some of those prompts with the one to keep.

    Args:
        folder: of the fit, with `head` and `policy` in it.
        learned: what the policies' stage found.
        widths: rounds that judge, those of EAGLE-3's beams first; the prompts that all of them have count.
        max_new_tokens: of the texts that are decoded.
    """
    widths = alike(widths)
    entries = [entry for width in widths for entry in _entries(folder, learned, width)]
    eagle, kept = entries[0], _kept(entries)
    rows = [row for width in widths for row in _rows([one for one in entries if one.width is width], eagle.outcome)]
    shown = next(row for row in rows if row.name == kept.name)
    fastest = max(entries, key=lambda one: one.outcome.speed)
    over, (low, high) = speed_ratio(fastest.outcome, kept.outcome)
    decoded, prompts, same = _decode(parts, stage, folder, {one.name: one for one in (eagle, kept)}, max_new_tokens)
    each = " and ".join(f"{len(one.rounds):,} rounds in trees of {one.beams} beams" for one in widths)
    return {
        "kept": kept.name,
        "fastest": fastest.name,
        "over_kept": [over, low, high],
        "policy": kept.told,
        "beams": kept.width.beams,
        "speeds": {one.name: one.outcome.speed for one in entries},
        "ratio": shown.ratio,
        "interval": list(shown.interval),
        "judged_by": f"{each}, of {len(widths[0].rounds.prompt.unique())} prompts",
        "replay": render(rows),
        "prompts": prompts,
        "same": same,
        "decoded": {
            name: [one.num_tokens, one.tokens_per_second, one.mean_acceptance_length, one.draft_calls_per_round]
            for name, one in decoded.items()
        },
        "speed_up": decoded[kept.name].tokens_per_second / decoded[PLAIN].tokens_per_second,
    }


def _entries(folder: Path, learned: dict[str, Any], width: Width) -> list[Entry]:
    """Of one width; EAGLE-3 first in its own."""
    rules, told = rules_of(learned)[width.beams], dict[str, dict[str, Any]]()
    if width.beams == EAGLE_BEAMS:
        told[EAGLE3] = {"calls": EAGLE_CALLS}
    told[THRESHOLD] = {"mass": rules["mass"]}
    if (rule := rules.get("nodes_by_mass")) is not None:  # a fit of before has none
        told[NODES_BY_MASS] = rule
    if network_beams(learned) == width.beams:
        told[NETWORK] = {"network": "policy"}
    found = []
    for name, one in told.items():
        policy = policy_of(folder, one)
        outcome = outcome_of(policy, width.rounds, width.costs)
        found.append(Entry(_named(name, width), one, policy, width, outcome, name == NETWORK))
    return found


def _named(name: str, width: Width) -> str:
    return name if width.beams == EAGLE_BEAMS else f"{name}, {width.beams} beams"


def _rows(entries: Sequence[Entry], reference: Outcome) -> list[Evaluation]:
    """Those of one width, and what bounds them."""
    width, mine = entries[0].width, {one.name: one.policy for one in entries}
    rows = evaluate(mine, width.rounds, width.costs, reference=reference)
    return [row if row.name in mine else row._replace(name=_named(row.name, width)) for row in rows]


def _kept(entries: Sequence[Entry]) -> Entry:
    """The fastest rule in trees of EAGLE-3's beams; where others are ahead of it by more than chance, the simplest of
    these, and so on, until none is: rules are simpler than a network, and EAGLE-3's beams than others."""
    kept, *others = sorted(entries, key=lambda one: (one.width.beams, one.is_network, -one.outcome.speed))
    while better := next((one for one in others if is_ahead(one.outcome, kept.outcome)), None):
        kept = better
    return kept


def say_judge(result: dict[str, Any]) -> str:
    return f"{result['kept']} is kept; {result['speed_up']:.2f} times as fast as without drafts"


def _decode(
    parts: Parts, stage: Stage, folder: Path, entries: dict[str, Entry], max_new_tokens: int
) -> tuple[dict[str, DecodeMetrics], int, int]:
    """Without drafts and with each entry, prompt by prompt in turn, until the time is over: the figures by name, how
    many prompts, and of how many all texts are the same."""
    decoders = {one: parts.drafting(folder / "head", beams=one) for one in {e.width.beams for e in entries.values()}}

    def use(entry: Entry) -> Callable[[], None]:
        return lambda: setattr(decoders[entry.width.beams], "policy", entry.policy)

    contenders = [Contender(PLAIN, parts.plain())]
    contenders += [Contender(name, decoders[one.width.beams], use(one)) for name, one in entries.items()]
    ids = [encode_prompt(line, parts.tokenizer) for line in parts.split.judge]
    with stage.aside():
        for one in contenders:  # first calls allocate and compile
            one.run(ids[0], min(8, max_new_tokens))
    found: dict[str, list[DecodeMetrics]] = {one.name: [] for one in contenders}
    prompts = same = 0
    for prompt in ids:
        outputs = [one.run(prompt, max_new_tokens) for one in contenders]
        for one, output in zip(contenders, outputs, strict=True):
            found[one.name].append(output.metrics)
        prompts += 1
        same += all(output.token_ids == outputs[0].token_ids for output in outputs)
        if prompts >= FEWEST and stage.left() <= 0:
            break
    return {name: merge(many) for name, many in found.items()}, prompts, same
