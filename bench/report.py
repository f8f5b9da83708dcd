"""Draws the README's plot from the files under `bench/results`. Needs the `plot` extra.

`python -m bench.report` writes `bench/results/embedded.png`.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TASKS = {"gsm8k": "GSM8K", "mbpp": "MBPP", "alpaca": "Alpaca", "mt_bench": "MT-bench"}
COLOURS = ("#1b6ca8", "#2a9d8f", "#e09f3e", "#9e2a2b")


def load(task: str) -> dict[str, dict[str, Any]]:
    """Metrics of each decoder on one task, by its name; ValueError if the outputs were not identical."""
    record = json.loads((RESULTS / f"embedded_{task}.json").read_text())
    if not record["identical"]:
        raise ValueError(f"embedded_{task}.json: the outputs were not identical, nothing to show")
    return {row["name"]: row["metrics"] for row in record["rows"]}


def stops(axes: Any) -> None:
    """Where RADAR stops: share of rounds by number of draft calls, a line for each task."""
    for colour, (task, title) in zip(COLOURS, TASKS.items(), strict=True):
        metrics = load(task)["RADAR"]
        counts = {int(calls): count for calls, count in metrics["stop_histogram"].items()}
        calls = range(1, 17)
        total = sum(counts.values())
        label = f"{title}, mean {metrics['draft_calls_per_round']:.2f}"
        axes.plot(calls, [100 * counts.get(n, 0) / total for n in calls], marker="o", ms=3, color=colour, label=label)
    axes.axvline(8, color="0.4", ls="--", lw=1)
    axes.annotate("EAGLE-3: always 8", (8.15, axes.get_ylim()[1] * 0.93), color="0.3", fontsize=8)
    axes.set(xlabel="draft calls in a round", ylabel="rounds, %", title="Where RADAR stops", xticks=range(1, 17))
    axes.legend(frameon=False, fontsize=8, loc="center right")


def changes(axes: Any) -> None:
    """RADAR against EAGLE-3 by task: draft calls per round and acceptance length, in per cent."""
    series = {"draft calls per round": "draft_calls_per_round", "acceptance length": "mean_acceptance_length"}
    for offset, (label, field), colour in zip((-0.2, 0.2), series.items(), ("#9e2a2b", "#1b6ca8"), strict=True):
        pairs = [load(task) for task in TASKS]
        values = [100 * (pair["RADAR"][field] / pair["EAGLE-3"][field] - 1) for pair in pairs]
        bars = axes.bar([x + offset for x in range(len(TASKS))], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%+.1f", fontsize=8, padding=2)
    axes.axhline(0, color="0.2", lw=0.8)
    axes.set(ylabel="change, %", title="Against EAGLE-3 with 8 calls", xticks=range(len(TASKS)), ylim=(-50, 15))
    axes.set_xticklabels(TASKS.values())
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def main() -> int:
    try:
        import matplotlib
    except ImportError:
        print("bench.report draws with matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    stops(left)
    changes(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "embedded.png", dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
