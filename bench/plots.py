"""Figures of the result files, for a matplotlib that the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.tables import METHODS, TASKS, Record, compared, embedded, load, round_parts

COLOURS = ("#1b6ca8", "#2a9d8f", "#e09f3e", "#9e2a2b", "#6c5b7b")


def plot_embedded(results: Path, pyplot: Any) -> Any:
    """Where RADAR stops, and its change of calls and acceptance, on the pair that ships."""
    found = embedded(results)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    _stops(left, {TASKS[task]: metrics["RADAR"] for task, metrics in found.items()})
    series = {"draft calls per round": "draft_calls_per_round", "acceptance length": "mean_acceptance_length"}
    for offset, (label, field), colour in zip((-0.2, 0.2), series.items(), ("#9e2a2b", "#1b6ca8"), strict=True):
        values = [100 * (pair["RADAR"][field] / pair["EAGLE-3"][field] - 1) for pair in found.values()]
        bars = right.bar([x + offset for x in range(len(found))], values, 0.38, color=colour, label=label)
        right.bar_label(bars, fmt="%+.1f", fontsize=8, padding=2)
    right.axhline(0, color="0.2", lw=0.8)
    right.set(ylabel="change, %", title="Against EAGLE-3 with 8 calls", xticks=range(len(TASKS)), ylim=(-50, 15))
    right.set_xticklabels(TASKS.values())
    right.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _stops(axes: Any, metrics: Mapping[str, Record]) -> None:
    """Share of rounds by number of draft calls, a line for each set of metrics."""
    calls = range(1, 17)
    for colour, (title, one) in zip(COLOURS, metrics.items(), strict=False):
        counts = {int(number): count for number, count in one["stop_histogram"].items()}
        label = f"{title}, mean {one['draft_calls_per_round']:.2f}"
        share = [100 * counts.get(n, 0) / sum(counts.values()) for n in calls]
        axes.plot(calls, share, marker="o", ms=3, color=colour, label=label)
    axes.axvline(8, color="0.4", ls="--", lw=1)
    axes.annotate("EAGLE-3: always 8", (8.15, axes.get_ylim()[1] * 0.93), color="0.3", fontsize=8)
    axes.set(xlabel="draft calls in a round", ylabel="rounds, %", title="Where RADAR stops", xticks=calls)
    axes.legend(frameon=False, fontsize=8, loc="center right")


def plot_speeds(results: Path, pyplot: Any) -> Any:
    """Speed-ups over autoregressive decoding with intervals: a row for each temperature, a panel for each pair."""
    cells = list(load("end_to_end_full.json", results)["cells"].values())
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    temperatures = sorted({cell["temperature"] for cell in cells})
    size = (4.2 * len(pairs), 3.4 * len(temperatures) + 0.4)
    figure, panels = pyplot.subplots(
        len(temperatures), len(pairs), figsize=size, layout="constrained", sharey="row", squeeze=False
    )
    for row, temperature in zip(panels, temperatures, strict=True):
        for axes, pair in zip(row, pairs, strict=True):
            here = [cell for cell in cells if cell["pair"] == pair and cell["temperature"] == temperature]
            _speeds(axes, {cell["task"]: cell["over_autoregressive"] for cell in here})
            axes.set_title(f"{pair}, temperature {temperature:g}")
        row[0].set_ylabel("times autoregressive decoding")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _speeds(axes: Any, over: Mapping[str, Record]) -> None:
    """Groups of bars by task, a bar for each method with its interval."""
    tasks = [task for task in TASKS if task in over]
    for number, (method, colour) in enumerate(zip(list(METHODS)[1:], COLOURS, strict=True)):
        found = [over[task][method] for task in tasks]
        places = [x + 0.16 * (number - 2) for x in range(len(tasks))]
        values = [one["value"] for one in found]
        errors = [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]
        axes.bar(places, values, 0.15, yerr=errors, color=colour, label=METHODS[method], error_kw={"lw": 0.8})
    axes.set_xticks(range(len(tasks)))
    axes.set_xticklabels([TASKS[task] for task in tasks])


def plot_stops(results: Path, pyplot: Any) -> Any:
    """Where RADAR stops on the wide pairs, temperature 0, a panel for each pair."""
    full = load("end_to_end_full.json", results)
    cells = [cell for cell in full["cells"].values() if cell["temperature"] == 0]
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    figure, panels = pyplot.subplots(1, len(pairs), figsize=(5 * len(pairs), 3.8), layout="constrained", squeeze=False)
    for axes, pair in zip(panels[0], pairs, strict=True):
        here = {TASKS[cell["task"]]: cell["methods"]["radar"] for cell in cells if cell["pair"] == pair}
        _stops(axes, here)
        axes.set_title(f"Where RADAR stops: {pair}")
    return figure


def plot_gains(results: Path, pyplot: Any) -> Any:
    """RADAR over EAGLE-3 by what the head gets accepted, a point for each cell of every comparison."""
    cells = compared(results)
    if not cells:
        raise FileNotFoundError("no end_to_end*_full.json")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for temperature, colour, marker in ((0.0, COLOURS[0], "o"), (1.0, COLOURS[2], "s")):
        here = [cell for cell in cells if cell["temperature"] == temperature]
        found = [cell["radar_over"]["eagle3"] for cell in here]
        values = [one["value"] for one in found]
        errors = [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]
        lengths = [cell["methods"]["eagle3"]["mean_acceptance_length"] for cell in here]
        axes.errorbar(
            lengths, values, yerr=errors, fmt=marker, ms=4, lw=0.6, color=colour, label=f"temperature {temperature:g}"
        )
    axes.axhline(1, color="0.3", lw=1)
    axes.set(
        xlabel="acceptance length of EAGLE-3 with 8 calls", ylabel="RADAR over EAGLE-3",
        title="What the gain depends on",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_calibration(results: Path, pyplot: Any) -> Any:
    """Claimed against observed probability that the target's token is in the tree."""
    record = load("calibration.json", results)
    figure, axes = pyplot.subplots(figsize=(4.6, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    for colour, (call, bins) in zip(COLOURS, record["calls"].items(), strict=False):
        claimed, observed = [one["claimed"] for one in bins], [one["observed"] for one in bins]
        axes.plot(claimed, observed, marker="o", ms=3, color=colour, label=f"after call {call}")
    axes.set(xlabel="summed probability of the beam", ylabel="target's token is in the tree", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Is the head's confidence true?")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_alphas(results: Path, pyplot: Any) -> Any:
    """Speed over EAGLE-3 by alpha, the throughput objective as a line."""
    record = load("alpha_ablation.json", results)
    figure, axes = pyplot.subplots(figsize=(5.6, 3.8), layout="constrained")
    for colour, (calls, curve) in zip(COLOURS, record["curves"].items(), strict=False):
        paper = [one for one in curve if one["alpha"] is not None]
        errors = [
            [one["over_eagle3"] - one["interval"][0] for one in paper],
            [one["interval"][1] - one["over_eagle3"] for one in paper],
        ]
        axes.errorbar(
            [one["alpha"] for one in paper], [one["over_eagle3"] for one in paper], yerr=errors, marker="o", ms=3,
            color=colour, lw=1, label=f"published reward, at most {calls} calls",
        )  # fmt: skip
        (line,) = [one for one in curve if one["alpha"] is None]
        axes.axhline(line["over_eagle3"], color=colour, ls="--", lw=1, label=f"throughput, at most {calls} calls")
    axes.set(xlabel="alpha of the published reward", ylabel="speed over EAGLE-3 with 8 calls", title="What alpha does")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_gaps(results: Path, pyplot: Any) -> Any:
    """From the best fixed depth (0 %) to the oracle that the scores allow (100 %), by set."""
    record = load("replay_policies.json", results)
    names = ("beam-mass threshold", "RADAR as published", "LSTM, throughput objective")
    sets = list(record["sets"])
    figure, axes = pyplot.subplots(figsize=(7, 0.42 * len(sets) + 1.4), layout="constrained")
    for number, (name, colour) in enumerate(zip(names, COLOURS[1:], strict=False)):
        rows = [{row["name"]: row for row in record["sets"][title]["policies"]}[name] for title in sets]
        values = [100 * (row["gap_closed"] or 0.0) for row in rows]
        axes.barh([y + 0.26 * (number - 1) for y in range(len(sets))], values, 0.25, color=colour, label=name)
    axes.axvline(100, color="0.4", ls="--", lw=1)
    axes.set(
        yticks=range(len(sets)), xlabel="share of the gap closed, %", title="From the best fixed depth to the oracle"
    )
    axes.set_yticklabels(sets, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.12))
    return figure


def plot_round(results: Path, pyplot: Any) -> Any:
    """Where a round's time goes, by prefix."""
    parts = round_parts(load("round_h200.json", results))
    figure, axes = pyplot.subplots(figsize=(8, 0.7 * len(parts) + 1.4), layout="constrained")
    left = dict.fromkeys(parts, 0.0)
    for name, colour in zip(next(iter(parts.values())), COLOURS, strict=True):
        values = [parts[prefix][name] for prefix in parts]
        axes.barh(list(parts), values, 0.6, left=list(left.values()), color=colour, label=name)
        left = {prefix: left[prefix] + parts[prefix][name] for prefix in parts}
    axes.set(xlabel="milliseconds", title="A round by parts")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


PLOTS: dict[str, Callable[[Path, Any], Any]] = {
    "embedded": plot_embedded, "end_to_end": plot_speeds, "end_to_end_stops": plot_stops, "gains": plot_gains,
    "calibration": plot_calibration, "alpha_ablation": plot_alphas, "oracle_gap": plot_gaps, "round": plot_round,
}  # fmt: skip


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
