"""The stop policies of an end-to-end comparison, fitted to one pair, one temperature and one cost table.

Everything is chosen by replay on rounds of prompts that measure nothing: the networks train on `train`; the threshold,
the published reward's alpha and the number of nodes are chosen on `develop-*`, the best fixed setting of a task on the
set nearest to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.lab.record_pair import NEAREST, NODES, SOURCES, TASKS, TREE, develop_set, rounds_of
from bench.lab.speed import geometric_mean
from radar import FixedDepth, RadarPolicy, Threshold, TreeConfig
from radar.policy.base import StopPolicy
from radar.policy.baselines import Capped
from radar.train.backward import fit_backward
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.evaluate import ATTAINABLE, BEST_FIXED, evaluate
from radar.train.policy import train_policy
from radar.train.replay import replay
from radar.train.tune import tune_fixed_depth

__all__ = ["EPOCHS", "METHODS", "TRAINING", "Choice", "choose_policies", "predict", "setting"]

EAGLE3, FIXED, THRESHOLD, PUBLISHED, RADAR = METHODS = ("eagle3", "best_fixed", "threshold", "published", "radar")
ALPHAS = (0.01, 0.03, 0.06, 0.09)  # the published grid's range
THRESHOLDS = [i / 50 for i in range(1, 50)]
EAGLE3_TREE = TreeConfig(max_calls=8)
SHARED = {"batch_size": 256, "learning_rate": 1e-3, "held_out": 0.1, "progress": False}
EPOCHS = 80  # of every network; 20 left the throughput objective short of the threshold on its own training rounds
TRAINING: dict[str, Any] = {**SHARED, "objective": "ratio", "estimator": "exact", "entropy": 0.1}  # RADAR's


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for one pair and temperature.

    Attributes:
        fixed: (calls, nodes) by task.
        threshold: on the beam's summed probability.
        nodes: of the tree that THRESHOLD and RADAR verify, the same for every task.
        published, radar: folders of the networks, relative to the file's.
        alpha: of the published reward.
        collapsed: what training said of networks that do not read their scores, by folder.
    """

    fixed: dict[str, tuple[int, int]]
    threshold: float
    nodes: dict[str, int]
    published: str
    radar: str
    alpha: float
    collapsed: dict[str, str | None]

    @classmethod
    def load(cls, file: Path) -> Choice:
        values = json.loads(file.read_text(encoding="utf8"))
        values["fixed"] = {task: tuple(pair) for task, pair in values["fixed"].items()}
        return cls(**values)


def choose_policies(
    rounds: Path, costs: CostTable, out: Path, *, temperature: float, epochs: int, workers: int = 1
) -> Choice:
    """Train and tune; writes `out/choice.json` and the networks. What an earlier call finished is kept.

    Args:
        rounds: folder that `bench.lab.record_pair` wrote.
        costs: of the wide pair, on the device that will measure.
        epochs: of every network.
        workers: processes that train networks side by side.
    """
    file = out / "choice.json"
    if file.is_file():
        return Choice.load(file)
    out.mkdir(parents=True, exist_ok=True)
    train = rounds_of(rounds, "train", temperature)
    develops = {
        nodes: {kind: rounds_of(rounds, f"develop-{kind}", temperature, nodes) for kind in SOURCES} for nodes in NODES
    }
    wanted: dict[str, dict[str, Any]] = {
        f"published-{alpha}": {**SHARED, "epochs": epochs, "alpha": alpha, "max_calls": EAGLE3_TREE.max_calls}
        for alpha in ALPHAS
    }
    wanted[RADAR] = {**TRAINING, "epochs": epochs}
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            waiting = {name: pool.submit(_train, train, out / name, costs, use) for name, use in wanted.items()}
            collapsed = {name: future.result() for name, future in waiting.items()}
    else:
        collapsed = {name: _train(train, out / name, costs, use) for name, use in wanted.items()}

    def speed(policy: StopPolicy, nodes: int) -> float:
        return _over_tasks(policy, develops[nodes], costs)

    alpha = max(ALPHAS, key=lambda one: speed(_published(out / f"published-{one}"), EAGLE3_TREE.total_tokens))
    grid = [(value, nodes) for nodes in NODES for value in THRESHOLDS]
    threshold, of_threshold = max(grid, key=lambda one: speed(Threshold(one[0]), one[1]))
    of_radar = max(NODES, key=lambda nodes: speed(RadarPolicy(out / RADAR), nodes))
    choice = Choice(
        fixed={task: _best_fixed(rounds, task, temperature, costs) for task in TASKS},
        threshold=threshold,
        nodes={THRESHOLD: of_threshold, RADAR: of_radar},
        published=f"published-{alpha}",
        radar=RADAR,
        alpha=alpha,
        collapsed=collapsed,
    )
    file.write_text(json.dumps(asdict(choice), indent=1) + "\n", encoding="utf8")
    return choice


def _train(train: RoundDataset, out: Path, costs: CostTable, options: dict[str, Any]) -> str | None:
    return train_policy(train, out, costs=costs, **options)["collapsed"]


def _published(folder: Path) -> StopPolicy:
    return Capped(RadarPolicy(folder, sample=True), EAGLE3_TREE.max_calls)


def _over_tasks(policy: StopPolicy, develop: Mapping[str, RoundDataset], costs: CostTable) -> float:
    """Tokens per time, the geometric mean over the tasks of the development rounds that are nearest: no kind of prompt
    counts for more than its tasks because it has more rounds."""
    speeds = {kind: replay(policy, data, costs).tokens_per_time for kind, data in develop.items()}
    return geometric_mean([speeds[NEAREST[task]] for task in TASKS])


def _best_fixed(rounds: Path, task: str, temperature: float, costs: CostTable) -> tuple[int, int]:
    """(calls, nodes) of the fastest fixed setting on the task's development prompts."""
    speeds = {}
    for nodes in NODES:
        found = tune_fixed_depth(rounds_of(rounds, develop_set(task), temperature, nodes), costs)
        speeds |= {(int(calls), nodes): speed for calls, speed in found.curve.items()}
    return max(speeds, key=lambda key: speeds[key])


def setting(choice: Choice, folder: Path, method: str, task: str) -> tuple[TreeConfig, StopPolicy]:
    """The tree and the policy of a method on a task. A method that never drafts deeper gets buffers of that depth."""
    if method == EAGLE3:
        return EAGLE3_TREE, FixedDepth(8)
    if method == FIXED:
        calls, nodes = choice.fixed[task]
        return TreeConfig(total_tokens=nodes, max_calls=8 if calls <= 8 else TREE.max_calls), FixedDepth(calls)
    if method == PUBLISHED:
        return EAGLE3_TREE, _published(folder / choice.published)
    tree = replace(TREE, total_tokens=choice.nodes[method])
    return tree, Threshold(choice.threshold) if method == THRESHOLD else RadarPolicy(folder / choice.radar)


def predict(
    rounds: Path, costs: CostTable, folder: Path, choice: Choice, *, temperature: float
) -> dict[str, dict[str, Any]]:
    """Replay of the tasks' own rounds: by task, what each method would reach with its tree, and, all with the tree of
    60 nodes, RADAR, the best fixed depth of these very rounds and the oracle that the scores allow."""
    attainable = fit_backward(rounds_of(rounds, "train", temperature), costs)
    predicted: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        data = rounds_of(rounds, task, temperature)
        settings = {method: setting(choice, folder, method, task) for method in METHODS}
        speeds = {}
        for method, (tree, policy) in settings.items():
            own = rounds_of(rounds, task, temperature, tree.total_tokens)
            speeds[method] = replay(policy, own, costs).tokens_per_time
        policies = {EAGLE3: settings[EAGLE3][1], RADAR: settings[RADAR][1]}
        rows = {row.name: row for row in evaluate(policies, data, costs, reference=EAGLE3, attainable=attainable)}
        predicted[task] = {
            "rounds": len(data),
            "tokens_per_second": speeds,
            "radar": rows[RADAR].to_dict(),
            "best_fixed_of_these_rounds": rows[BEST_FIXED].tokens_per_second,
            "attainable": rows[ATTAINABLE].tokens_per_second,
        }
    return predicted
