"""The sixth stage: which policy is the fastest on prompts that nothing has seen, and what decoding with it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from radar.fit.parts import EAGLE_CALLS, Parts
from radar.fit.stages import Stage
from radar.metrics import DecodeMetrics, merge
from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.policy.fitted import policy_of
from radar.policy.lstm import RadarPolicy
from radar.replay.evaluate import Evaluation, evaluate, render
from radar.replay.rounds import RoundDataset
from radar.tools.compare import Contender
from radar.tools.costs import CostTable
from radar.tools.prompts import encode_prompt
from radar.train.contenders import EAGLE3, NODES_BY_MASS

__all__ = ["judge", "say_judge"]

THRESHOLD, NETWORK = "tuned threshold", "RADAR"
PLAIN = "without drafts"
FEWEST = 2  # prompts that are decoded, whatever the clock says


def judge(
    parts: Parts,
    stage: Stage,
    folder: Path,
    learned: dict[str, Any],
    rounds: RoundDataset,
    costs: CostTable,
    *,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Replay rounds of held-out prompts under every policy, and decode some of those prompts with the fastest.

    Args:
        folder: of the fit, with `head` and `policy` in it.
        learned: what the policies' stage found.
        rounds, costs: that judge.
        max_new_tokens: of the texts that are decoded.
    """
    kept: dict[str, Any] = {EAGLE3: {"calls": EAGLE_CALLS}, THRESHOLD: {"mass": learned["mass"]}}
    policies: dict[str, StopPolicy] = {EAGLE3: FixedDepth(EAGLE_CALLS), THRESHOLD: Threshold(learned["mass"])}
    if (rule := learned.get("nodes_by_mass")) is not None:  # a fit of before has none
        kept[NODES_BY_MASS], policies[NODES_BY_MASS] = rule, policy_of(folder, rule)
    if learned["why_no_network"] is None:
        kept[NETWORK] = {"network": "policy"}
        policies[NETWORK] = RadarPolicy(folder / "policy")
    results = evaluate(policies, rounds, costs, reference=EAGLE3)
    best = _fastest([one for one in results if one.name in kept], policies, rounds, costs)
    decoded, prompts, same = _decode(
        parts, stage, folder, {name: policies[name] for name in dict.fromkeys((EAGLE3, best.name))}, max_new_tokens
    )
    ahead = max((one for one in results if one.name in kept), key=lambda one: one.tokens_per_second)
    return {
        "kept": best.name,
        "fastest": ahead.name,
        "policy": kept[best.name],
        "speeds": {one.name: one.tokens_per_second for one in results if one.name in kept},
        "ratio": best.ratio,
        "interval": list(best.interval),
        "replay": render(results),
        "prompts": prompts,
        "same": same,
        "decoded": {
            name: [one.num_tokens, one.tokens_per_second, one.mean_acceptance_length, one.draft_calls_per_round]
            for name, one in decoded.items()
        },
        "speed_up": decoded[best.name].tokens_per_second / decoded[PLAIN].tokens_per_second,
    }


def _fastest(
    results: Sequence[Evaluation], policies: dict[str, StopPolicy], rounds: RoundDataset, costs: CostTable
) -> Evaluation:
    """The fastest, but the fastest rule where the network is ahead of it by no more than chance."""
    by_speed = sorted(results, key=lambda one: -one.tokens_per_second)
    if by_speed[0].name != NETWORK:
        return by_speed[0]
    rule = by_speed[1]
    both = {name: policies[name] for name in (rule.name, NETWORK)}
    ahead = next(one for one in evaluate(both, rounds, costs, reference=rule.name) if one.name == NETWORK)
    return by_speed[0] if ahead.interval[0] > 1 else rule


def say_judge(result: dict[str, Any]) -> str:
    return f"{result['kept']} is kept; {result['speed_up']:.2f} times as fast as without drafts"


def _decode(
    parts: Parts, stage: Stage, folder: Path, policies: dict[str, StopPolicy], max_new_tokens: int
) -> tuple[dict[str, DecodeMetrics], int, int]:
    """Without drafts and with each policy, prompt by prompt in turn, until the time is over: the figures by name, how
    many prompts, and of how many all texts are the same."""
    decoder = parts.drafting(folder / "head")

    def use(policy: StopPolicy) -> Callable[[], None]:
        return lambda: setattr(decoder, "policy", policy)

    contenders = [Contender(PLAIN, parts.plain())]
    contenders += [Contender(name, decoder, use(policy)) for name, policy in policies.items()]
    ids = [encode_prompt(line, parts.tokenizer) for line in parts.split.judge]
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
