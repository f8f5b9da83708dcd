"""Tables and the plot from the files under `bench/results`: `python -m bench.report`. Drawing needs the `plot` extra.

Writes report.md and embedded.png beside the files. A table whose file is not there is left out and named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.tables import RESULTS, TASKS, load, write_tables

COLOURS = ("#1b6ca8", "#2a9d8f", "#e09f3e", "#9e2a2b", "#6c5b7b")


def plot_embedded(results: Path, pyplot: Any) -> Any:
    """Where RADAR stops, and its change of calls and acceptance, on the pair that ships.

    ValueError if outputs were not identical: there is nothing to show then.
    """
    records = load("end_to_end/embedded_tasks_cpu.json", results)
    if unlike := [task for task in TASKS if not records[task]["identical"]]:
        raise ValueError(f"embedded_tasks_cpu.json: the outputs of {', '.join(unlike)} were not identical")
    found = {task: {row["name"]: row["metrics"] for row in records[task]["rows"]} for task in TASKS}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    calls = range(1, 17)
    for colour, (task, metrics) in zip(COLOURS, found.items(), strict=False):
        counts = {int(number): count for number, count in metrics["RADAR"]["stop_histogram"].items()}
        share = [100 * counts.get(n, 0) / sum(counts.values()) for n in calls]
        label = f"{TASKS[task]}, mean {metrics['RADAR']['draft_calls_per_round']:.2f}"
        left.plot(calls, share, marker="o", ms=3, color=colour, label=label)
    left.axvline(8, color="0.4", ls="--", lw=1)
    left.annotate("EAGLE-3: always 8", (8.15, left.get_ylim()[1] * 0.93), color="0.3", fontsize=8)
    left.set(xlabel="draft calls in a round", ylabel="rounds, %", title="Where RADAR stops", xticks=calls)
    left.legend(frameon=False, fontsize=8, loc="center right")
    series = {"draft calls per round": "draft_calls_per_round", "acceptance length": "mean_acceptance_length"}
    for offset, (label, field), colour in zip((-0.2, 0.2), series.items(), ("#9e2a2b", "#1b6ca8"), strict=True):
        values = [100 * (pair["RADAR"][field] / pair["EAGLE-3"][field] - 1) for pair in found.values()]
        bars = right.bar([x + offset for x in range(len(found))], values, 0.38, color=colour, label=label)
        right.bar_label(bars, fmt="%+.1f", fontsize=8, padding=2)
    right.axhline(0, color="0.2", lw=0.8)
    title = "Against EAGLE-3 with 8 calls, 60 nodes both"
    right.set(ylabel="change, %", title=title, xticks=range(len(TASKS)), ylim=(-50, 15))
    right.set_xticklabels(TASKS.values())
    right.legend(frameon=False, fontsize=8, loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for line in write_tables(args.results):
        print(f"left out: {line}")
    try:
        import matplotlib
    except ImportError:
        print("bench.report draws with matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot_embedded(args.results, pyplot).savefig(args.results / "embedded.png", dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
