"""Figures of the result files, for a matplotlib that the caller brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.tables import TASKS, Record, compared, load

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
    return figure


def _errors(found: list[Record]) -> list[list[float]]:
    return [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]


def plot_gains(results: Path, pyplot: Any) -> Any:
    """RADAR over EAGLE-3 by what the head gets accepted, a point for each cell of every comparison."""
    cells = compared(results)
    if not cells:
        raise FileNotFoundError("no end_to_end/end_to_end*.json")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for temperature, colour, marker in ((0.0, COLOURS[0], "o"), (1.0, COLOURS[2], "s")):
        here = [cell for cell in cells if cell["temperature"] == temperature]
        found = [cell["radar_over"]["eagle3"] for cell in here]
        lengths = [cell["methods"]["eagle3"]["mean_acceptance_length"] for cell in here]
        style = {"fmt": marker, "ms": 4, "lw": 0.6, "color": colour, "label": f"temperature {temperature:g}"}
        axes.errorbar(lengths, [one["value"] for one in found], yerr=_errors(found), **style)
    axes.axhline(1, color="0.3", lw=1)
    axes.set(xlabel="acceptance length of EAGLE-3 with 8 calls", ylabel="RADAR over EAGLE-3")
    axes.set_title("What the gain depends on")
    axes.legend(frameon=False, fontsize=8)
    return figure


PLOTS: dict[str, Callable[[Path, Any], Any]] = {"embedded": plot_embedded, "gains": plot_gains}


def write_plots(results: Path, pyplot: Any) -> list[str]:
    """PNG files from the files that are there; returns what was left out."""
    left_out = []
    for name, draw in PLOTS.items():
        try:
            figure = draw(results, pyplot)
        except FileNotFoundError as error:
            left_out.append(f"{name}.png: {error}")
            continue
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(results / f"{name}.png", dpi=130)
        pyplot.close(figure)
    return left_out
