"""The policies of a comparison, tuned and trained on development rounds: EAGLE-3, rules of the literature, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.policy.baselines import DDD, OptTree, Talon
from radar.policy.baselines_heads import AcceptanceHead
from radar.policy.baselines_history import GammaTune
from radar.train.costs import CostTable
from radar.train.rounds import RoundDataset
from radar.train.rules import expected_gain, fit_gain_curves, train_acceptance_head, train_level_policy
from radar.train.tune import tune, tune_fixed_depth

__all__ = ["EAGLE3", "Contender", "tuned_contenders"]

EAGLE3 = "EAGLE-3 (8 calls)"


class Contender(NamedTuple):
    """A policy and the value that tuning gave it (None if it has none), which may be the last that was tried."""

    policy: StopPolicy
    value: float | None = None
    at_edge: bool = False


def tuned_contenders(
    train: RoundDataset, develop: RoundDataset, costs: CostTable, *, epochs: int = 80
) -> dict[str, Contender]:
    """Fit on `train`, choose thresholds and epochs by replay on `develop`; the prompts of both are then used up.

    Rules keep their published form, and DDD its published schedule; what is tuned is their one threshold.

    Args:
        costs: of a round.
        epochs: of the heads, as many as RADAR's network gets: 10 can leave LTD's at "never stop".
    """
    most = train.header.tree.max_calls
    found = {EAGLE3: Contender(FixedDepth(min(8, most)))}

    def add(name: str, make: Callable[[float], StopPolicy], values: Sequence[float]) -> None:
        best = tune(make, values, develop, costs)
        found[name] = Contender(best.policy, best.value, best.at_edge)

    fixed = tune_fixed_depth(develop, costs)
    found["fixed depth"] = Contender(fixed.policy, fixed.value, int(fixed.value) == most)
    add("beam-mass threshold", Threshold, [i / 50 for i in range(1, 50)])
    curves = fit_gain_curves(train)
    add("expected extra token", lambda price: expected_gain(curves, price), [i / 100 for i in range(2, 62, 2)])
    add("DDD", DDD, [-i / 10 for i in range(41)])
    add("TALON", Talon, [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
    add("OPT-Tree", OptTree, [i / 50 for i in range(1, 51)])
    add("GammaTune", lambda rate: GammaTune(rate, low=min(4, most), calls=min(8, most)), [0.05, 0.1, 0.2, 0.3, 0.5])
    head = train_acceptance_head(train, epochs=epochs)
    bounds = [i / 50 for i in range(1, 50)] + [0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999]
    add("SpecDec++ head", lambda bound: AcceptanceHead(head, bound), bounds)
    found["LTD's MLP"] = Contender(train_level_policy(train, develop, costs, epochs=epochs))
    return found
