"""What can be asked of stop policies by replay: configurations of the loop in `bench.lab.judge`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.lab.fit import ALPHAS, fit, published_options, radar_options
from bench.lab.policies import PUBLISHED, RADAR, Choice, setting
from bench.lab.sets import TASKS, TRAIN, TREE, rounds_of
from radar import RadarPolicy, Threshold
from radar.policy.base import StopPolicy
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.contenders import tuned_contenders

__all__ = ["CONFIGURATIONS", "Asked", "Pair", "load_pair"]

PRICES = (1, 2, 4, 8)
Policies = dict[str, StopPolicy]


@dataclass(frozen=True)
class Pair:
    """One pair at one temperature: rounds to fit and to judge on, what they cost, and what was chosen before.

    Attributes:
        folder: of its rounds, costs.json and T0/choice.json.
        tasks: rounds by task.
    """

    folder: Path
    temperature: float
    train: RoundDataset
    tasks: Mapping[str, RoundDataset]
    costs: CostTable
    choice: Choice

    @property
    def chosen(self) -> Path:
        return self.folder / f"T{self.temperature:g}"

    def dearer(self, times: float) -> Pair:
        """The same where a draft call costs so many times as much."""
        calls = tuple(times * one for one in self.costs.draft_call_seconds)
        return replace(self, costs=replace(self.costs, draft_call_seconds=calls))

    def shallower(self, calls: int) -> Pair:
        """The same with so many draft calls at the most."""
        tasks = {task: rounds.truncate(calls) for task, rounds in self.tasks.items()}
        return replace(self, train=self.train.truncate(calls), tasks=tasks)


@dataclass(frozen=True)
class Asked:
    """Policies by name, rounds and costs that judge them, what tuning chose. `label` stands behind the temperature."""

    label: str
    pair: Pair
    policies: Policies
    values: dict[str, float] = field(default_factory=dict)


def load_pair(folder: Path, temperature: float) -> Pair:
    """What `bench.end_to_end` left in a pair's folder. FileNotFoundError: a stage is missing."""
    train = rounds_of(folder / "rounds", TRAIN, temperature)
    tasks = {task: rounds_of(folder / "rounds", task, temperature) for task in TASKS}
    costs = CostTable.load(folder / "costs.json", device=None)
    return Pair(folder, temperature, train, tasks, costs, Choice.load(folder / f"T{temperature:g}" / "choice.json"))


def rules(pair: Pair, pairs: Sequence[Pair], work: Path, epochs: int) -> Iterator[Asked]:
    develop = rounds_of(pair.folder / "rounds", "develop-*", pair.temperature)
    tuned = tuned_contenders(pair.train, develop, pair.costs, epochs=epochs)
    policies: Policies = {name: one.policy for name, one in tuned.items()}
    policies["RADAR as published"] = setting(pair.choice, pair.chosen, PUBLISHED, TASKS[0])[1]
    values = {name: one.value for name, one in tuned.items() if one.value is not None}
    yield Asked("", pair, policies | {"RADAR": RadarPolicy(pair.chosen / RADAR)}, values)


def alphas(pair: Pair, pairs: Sequence[Pair], work: Path, epochs: int) -> Iterator[Asked]:
    for calls in (TREE.max_calls, 8):
        part = pair.shallower(calls)
        wanted = {f"alpha {alpha:g}": published_options(alpha, epochs, max_calls=None) for alpha in (0.0, *ALPHAS)}
        wanted["ratio objective"] = radar_options(epochs)
        fit(part.train, part.costs, work / f"calls-{calls}", wanted)
        policies: Policies = {name: RadarPolicy(work / f"calls-{calls}" / name) for name in wanted}
        yield Asked(f", at most {calls} calls", part, policies)


def transfer(pair: Pair, pairs: Sequence[Pair], work: Path, epochs: int) -> Iterator[Asked]:
    for source in pairs:
        policies: Policies = {"RADAR": RadarPolicy(source.chosen / RADAR)}
        policies["beam-mass threshold"] = Threshold(source.choice.threshold)
        yield Asked(f", policies of {source.folder.name}", pair, policies)


def prices(pair: Pair, pairs: Sequence[Pair], work: Path, epochs: int) -> Iterator[Asked]:
    for price in PRICES:
        part = pair.dearer(price)
        fit(part.train, part.costs, work, {f"price-{price}": radar_options(epochs)})
        trained = RadarPolicy(work / f"price-{price}")
        policies: Policies = {"RADAR as trained": RadarPolicy(pair.chosen / RADAR), "RADAR trained for it": trained}
        yield Asked(
            f", draft calls {price} times as dear", part, policies | {"threshold": Threshold(pair.choice.threshold)}
        )


CONFIGURATIONS: dict[str, Callable[[Pair, Sequence[Pair], Path, int], Iterator[Asked]]] = {
    "rules": rules, "alphas": alphas, "transfer": transfer, "prices": prices
}  # fmt: skip
