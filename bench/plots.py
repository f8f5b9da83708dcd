"""The report's plots: methods over EAGLE-3, and what the card, the rounds and other libraries look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.headline import EAGLE3, TEMPERATURES, Found, compared, name_of, peer_rates
from bench.runs import AUTOREGRESSIVE, RADAR, Run, cells_of
from bench.sections import judged, speed
from bench.tables import ALPHA, BOUNDS, METHODS, PAIRS, TASKS, load, of_shape, shown

__all__ = ["draw"]

COLOURS = ("#1b6ca8", "#e09f3e", "#9e2a2b", "#2a9d8f", "#6c5b7b")
BY_SHAPE = dict(zip(PAIRS.values(), COLOURS, strict=False))
CONTEXT = "2048"  # of the verifications that are drawn


def draw(found: Found, results: Path, pyplot: Any) -> dict[str, Any]:
    """Figures by file name; none without its data."""
    figures = {}
    if found.replayed:
        figures["methods.png"] = over_eagle3(found.replayed, pyplot)
    if found.decoded.alone:
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
        verification(load("round/costs_by_rows_h200.json", results), axes[0, 0])
        beside_others(found, axes[0, 1])
        stops(found.decoded.alone, axes[1, 0])
        nodes(found.decoded.alone, axes[1, 1])
        figures["card.png"] = figure
    for one in figures.values():
        for axes in one.axes:
            axes.spines[["top", "right"]].set_visible(False)
    return figures


def over_eagle3(runs: Sequence[Run], pyplot: Any) -> Any:
    """Above every method by temperature, below RADAR by task and shape; all on one scale."""
    names = [name for name in sorted({run["method"] for run in runs} - {EAGLE3}) if not name.startswith(ALPHA)]
    rows = {temperature: judged(runs, temperature, names) for temperature in TEMPERATURES}
    order = [name for name, *_ in rows[0.0]]  # the others, as the oracle of temperature 1, below
    order += [name for name, *_ in rows[1.0] if name not in order]
    tasks, pairs = ({run[key]: None for run in runs} for key in ("task", "pair"))
    cells = list(product(tasks, pairs))
    height = 0.22 * (len(order) + len(cells)) + 1.6
    sizes = {"height_ratios": [len(order), len(cells)], "sharex": "all", "sharey": "row"}
    figure, axes = pyplot.subplots(2, 2, figsize=(10, height), layout="constrained", **sizes)
    for column, temperature in enumerate(TEMPERATURES):
        points = {order.index(name): one for name, one, _ in rows[temperature]}
        colours = ["k" if name == RADAR else "0.6" if name in BOUNDS else COLOURS[3] for name in order]
        _points(axes[0, column], points, colours)
        ratios = {
            place: one
            for place, (task, pair) in enumerate(cells)
            for cell in cells_of(runs, temperature, RADAR, EAGLE3)
            if (cell[0]["task"], cell[0]["pair"]) == (task, pair)
            and (one := (compared(cell, temperature, RADAR, EAGLE3) or [None])[0])
        }
        _points(axes[1, column], ratios, [colour_of(pair) for _, pair in cells])
        axes[0, column].set_title(f"Every method, temperature {temperature:g}", fontsize=10)
        axes[1, column].set_title(f"RADAR by task and shapes, temperature {temperature:g}", fontsize=10)
    counts = {name: len(of) for found in rows.values() for name, _, of in found}
    few = {name: f", {n} of {len(cells)} cells" for name, n in counts.items() if n < len(cells)}
    axes[0, 0].set_yticks(range(len(order)), [shown(name) + few.get(name, "") for name in order], fontsize=8)
    axes[1, 0].set_yticks(range(len(cells)), [f"{TASKS[task]}, {of_shape(pair)}" for task, pair in cells], fontsize=8)
    for axis in axes[:, 0]:
        axis.invert_yaxis()
    for axis in axes[1]:
        axis.locator_params(axis="x", prune="upper")  # where one ends the next begins
    figure.supxlabel("times the speed of EAGLE-3 (8 calls, 60 nodes), by replay; bars: 95 %", fontsize=10)
    return figure


def colour_of(pair: str) -> str:
    return BY_SHAPE.get(of_shape(pair), "0.4")


def _points(axes: Any, found: dict[int, Any], colours: Sequence[str]) -> None:
    for place, (value, low, high) in found.items():
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", ms=4, lw=1.2, color=colours[place])
    axes.axvline(1, color="0.4", lw=0.8, ls="--")
    axes.grid(axis="x", color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def verification(record: Any, axes: Any) -> None:
    """A line for each shape, a point for each measurement."""
    for shape, one in record["shapes"].items():
        colour, place = BY_SHAPE.get(shape, "0.4"), "bottom" if shape == PAIRS["qwen"] else "top"  # they lie close
        found = {int(rows): by_context[CONTEXT] for rows, by_context in one["verify"].items()}
        axes.plot(list(found), [repeats[0] for repeats in found.values()], color=colour, lw=1.2)
        points = [(rows, ms) for rows, repeats in found.items() for ms in repeats]
        axes.plot(*zip(*points, strict=True), "o", ms=3, color=colour)
        axes.annotate(f" {shape}", points[-1], color=colour, fontsize=8, va=place)
    axes.set(xlabel="rows that are verified together", ylabel="milliseconds", xlim=(0, 345), ylim=(0, None))
    axes.set_title(f"A verification behind {CONTEXT} tokens", fontsize=10)


def beside_others(found: Found, axes: Any) -> None:
    """Tokens per second on one checkpoint, one request at a time and several, both on one scale."""
    names = [name for name in (AUTOREGRESSIVE, EAGLE3, "threshold", RADAR) if speed(found, "llama", 0.0, name)]
    counts = sorted({1} | {one["rows"] for one in found.decoded.together} | {p["rows_at_once"] for p in found.peers})
    labels = [METHODS[name] for name in names] + list(dict.fromkeys(map(name_of, found.peers)))
    for offset, count in enumerate(counts):
        values = [speed(found, "llama", 0.0, name, count) for name in names]
        theirs = {name: one for (name, rows), one in peer_rates(found).items() if rows == count}
        values += [theirs.get(label) for label in labels[len(names) :]]
        places = [place + 0.8 / len(counts) * offset for place in range(len(labels))]
        widths, colour = [value or 0 for value in values], COLOURS[offset % len(COLOURS)]
        bars = axes.barh(places, widths, 0.75 / len(counts), color=colour)
        axes.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], fontsize=7, padding=2)
    middle = 0.4 * (len(counts) - 1) / len(counts)
    axes.set_yticks([place + middle for place in range(len(labels))], labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"tokens a second; from above: {', '.join(map(str, counts))} rows")
    axes.set_title(f"Other libraries, {of_shape('llama')}, temperature 0", fontsize=10)


def stops(runs: Sequence[Run], axes: Any) -> None:
    """Rounds by their draft calls, a line for each shape and temperature."""
    for pair in dict.fromkeys(run["pair"] for run in runs):
        for temperature, style in zip(TEMPERATURES, ("-", "--"), strict=True):
            counts: Counter[int] = Counter()
            for run in runs:
                if (run["pair"], run["temperature"], run["method"]) == (pair, temperature, RADAR):
                    counts.update({int(calls): rounds for calls, rounds in run["stops"].items()})
            if counts:
                calls = range(1, max(counts) + 1)
                share = [100 * counts[n] / counts.total() for n in calls]
                name = f"{of_shape(pair)}, T = {temperature:g}"
                axes.plot(calls, share, style, color=colour_of(pair), lw=1.2, label=name)
    axes.axvline(8, color="0.4", ls=":", lw=1)
    axes.set(xlabel="draft calls of a round (dotted: EAGLE-3's 8)", ylabel="rounds, %", ylim=(0, None))
    axes.set_title("Where RADAR stops", fontsize=10)
    options = {"frameon": False, "fontsize": 8, "loc": "outside lower center", "ncols": 3}
    axes.figure.legend(*axes.get_legend_handles_labels(), **options)


def nodes(runs: Sequence[Run], axes: Any) -> None:
    """The mean number of nodes that RADAR verifies for every prompt: quartiles, and all within 1.5 of their range."""
    boxes: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        if run["method"] == RADAR and run["rounds"]:
            boxes.setdefault((run["pair"], run["temperature"]), []).append(run["drafted"] / run["rounds"] + 1)
    boxes = dict(sorted(boxes.items()))
    axes.boxplot(list(boxes.values()), widths=0.5, medianprops={"color": COLOURS[2]}, flierprops={"ms": 3})
    labels = [f"{of_shape(pair)}, T = {temperature:g}" for pair, temperature in boxes]
    axes.set_xticks(range(1, len(boxes) + 1), labels, fontsize=7, rotation=20, ha="right")
    axes.axhline(60, color="0.4", ls=":", lw=1)
    axes.set(ylabel="nodes of a round, mean of a prompt", ylim=(0, None))
    axes.set_title("Nodes that RADAR verifies (dotted: EAGLE-3's)", fontsize=10)
