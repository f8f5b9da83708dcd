"""The stop policies of an end-to-end comparison, fitted to one pair, one temperature and one cost table.

Everything is chosen by replay on rounds of prompts that measure nothing: the networks train on `train`; the threshold,
the published reward's alpha and the number of nodes are chosen on `develop-*`, the best fixed setting of a task on the
set nearest to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.intervals import geometric_mean
from bench.lab.fit import ALPHAS, PUBLISHED_CALLS, fit, published, published_options, radar_options
from bench.lab.sets import NEAREST, NODES, SOURCES, TASKS, TRAIN, TREE, rounds_of
from radar import FixedDepth, RadarPolicy, Threshold, TreeConfig
from radar.policy.base import StopPolicy
from radar.replay.replay import replay, tune_fixed_depth
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable

EAGLE3, FIXED, THRESHOLD, PUBLISHED, RADAR = METHODS = ("eagle3", "best_fixed", "threshold", "published", "radar")
THRESHOLDS = [i / 50 for i in range(1, 50)]
EAGLE3_TREE = TreeConfig(max_calls=PUBLISHED_CALLS)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for one pair and temperature.

    Attributes:
        fixed: (calls, nodes) by task.
        threshold: on the beam's summed probability.
        nodes: of the tree that THRESHOLD and RADAR verify, the same for every task.
        alpha: of the published reward.
        collapsed: what training said of networks that do not read their scores, by folder beside the file.
    """

    fixed: dict[str, tuple[int, int]]
    threshold: float
    nodes: dict[str, int]
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
        rounds: folder that `bench.lab.record` wrote.
        costs: of the wide pair, on the device that will measure.
        epochs: of every network.
        workers: processes that train networks side by side.
    """
    file = out / "choice.json"
    if file.is_file():
        return Choice.load(file)
    out.mkdir(parents=True, exist_ok=True)
    wanted = {f"{PUBLISHED}-{alpha}": published_options(alpha, epochs) for alpha in ALPHAS}
    wanted[RADAR] = radar_options(epochs)
    collapsed = fit(rounds_of(rounds, TRAIN, temperature), costs, out, wanted, workers=workers)
    develops = {
        nodes: {kind: rounds_of(rounds, f"develop-{kind}", temperature, nodes) for kind in SOURCES} for nodes in NODES
    }

    def speed(policy: StopPolicy, nodes: int) -> float:
        return _over_tasks(policy, develops[nodes], costs)

    def best_fixed(kind: str) -> tuple[int, int]:
        """(calls, nodes) of the fastest fixed setting."""
        speeds = {}
        for nodes in NODES:
            found = tune_fixed_depth(develops[nodes][kind], costs)
            speeds |= {(int(calls), nodes): speed for calls, speed in found.curve.items()}
        return max(speeds, key=lambda key: speeds[key])

    alpha = max(ALPHAS, key=lambda one: speed(published(out / f"{PUBLISHED}-{one}"), EAGLE3_TREE.total_tokens))
    grid = [(value, nodes) for nodes in NODES for value in THRESHOLDS]
    threshold, of_threshold = max(grid, key=lambda one: speed(Threshold(one[0]), one[1]))
    of_radar = max(NODES, key=lambda nodes: speed(RadarPolicy(out / RADAR), nodes))
    choice = Choice(
        fixed={task: best_fixed(NEAREST[task]) for task in TASKS}, threshold=threshold, alpha=alpha,
        nodes={THRESHOLD: of_threshold, RADAR: of_radar}, collapsed=collapsed,
    )  # fmt: skip
    file.write_text(json.dumps(asdict(choice), indent=1) + "\n", encoding="utf8")
    return choice


def _over_tasks(policy: StopPolicy, develop: Mapping[str, RoundDataset], costs: CostTable) -> float:
    """Tokens per time, the geometric mean over the tasks of the development rounds that are nearest: no kind of prompt
    counts for more than its tasks because it has more rounds."""
    speeds = {kind: replay(policy, data, costs).tokens_per_time for kind, data in develop.items()}
    return geometric_mean([speeds[NEAREST[task]] for task in TASKS])


def setting(choice: Choice, folder: Path, method: str, task: str) -> tuple[TreeConfig, StopPolicy]:
    """The tree and the policy of a method on a task. A method that never drafts deeper gets buffers of that depth."""
    if method == EAGLE3:
        return EAGLE3_TREE, FixedDepth(8)
    if method == FIXED:
        calls, nodes = choice.fixed[task]
        return TreeConfig(total_tokens=nodes, max_calls=8 if calls <= 8 else TREE.max_calls), FixedDepth(calls)
    if method == PUBLISHED:
        return EAGLE3_TREE, published(folder / f"{PUBLISHED}-{choice.alpha}")
    tree = replace(TREE, total_tokens=choice.nodes[method])
    return tree, Threshold(choice.threshold) if method == THRESHOLD else RadarPolicy(folder / RADAR)
