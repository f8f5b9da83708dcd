"""Tables and plots from the files under `bench/results`: `python -m bench.report`. Plots need the `plot` extra.

Writes report.md and one PNG for each figure beside the files. A figure whose file is not there, or was not measured, is
left out and named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.lab.speed import geometric_mean

RESULTS = Path(__file__).parent / "results"
TASKS = {"mt_bench": "MT-bench", "gsm8k": "GSM8K", "alpaca": "Alpaca", "mbpp": "MBPP"}
METHODS = {
    "autoregressive": "autoregressive",
    "eagle3": "EAGLE-3, 8 calls",
    "best_fixed": "best fixed setting",
    "threshold": "threshold",
    "published": "RADAR as published",
    "radar": "RADAR",
}
COLOURS = ("#1b6ca8", "#2a9d8f", "#e09f3e", "#9e2a2b", "#6c5b7b")
Record = dict[str, Any]


def load(name: str, results: Path = RESULTS) -> Record:
    """A result file. FileNotFoundError names it."""
    path = results / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name}")
    record: Record = json.loads(path.read_text(encoding="utf8"))
    return record


def embedded(results: Path) -> dict[str, Record]:
    """Metrics by task and decoder. ValueError if outputs were not identical."""
    found = {}
    for task in TASKS:
        record = load(f"embedded_{task}.json", results)
        if not record["identical"]:
            raise ValueError(f"embedded_{task}.json: the outputs were not identical, nothing to show")
        found[task] = {row["name"]: row["metrics"] for row in record["rows"]}
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def speeds(full: Record) -> str:
    """Speed over autoregressive decoding by cell, and what RADAR gains over the others."""
    rows = []
    for name, cell in full["cells"].items():
        ratios = cell["over_autoregressive"]
        figures = [f"{ratios[method]['value']:.2f}" if method in ratios else "" for method in list(METHODS)[1:]]
        plain = f"{cell['methods']['autoregressive']['tokens_per_second']:.0f}"
        same = f"{cell['texts_identical']} of {cell['texts']}"
        rows.append([name, str(cell["prompts"]), plain, *figures, interval(cell["radar_over"]["eagle3"]), same])
    head = ["cell", "prompts", "tokens/s, autoregressive", *[f"{METHODS[m]}" for m in list(METHODS)[1:]]]
    text = table([*head, "RADAR over EAGLE-3", "texts identical"], rows)
    for temperature, overall in full["overall"].items():
        same = overall["radar_over_in_equal_texts"]
        gains = [
            [METHODS[name], interval(found), f"{interval(same[name])}, {same[name]['texts']}" if name in same else ""]
            for name, found in overall["radar_over"].items()
        ]
        text += (
            f"\nTemperature {temperature}, geometric mean of {overall['cells']} cells, 95 % intervals by prompt:\n\n"
        )
        text += table(["RADAR over", "ratio", f"in equal texts, of {overall['texts']}"], gains)
        text += (
            f"\nDraft calls {overall['draft_calls_change']:+.1%}, acceptance length "
            f"{overall['acceptance_change']:+.1%} against EAGLE-3 with 8 calls.\n"
        )
        if "radar_over_generate" in overall:
            text += (
                f"\n{overall['radar_over_generate']:.2f} times the speed of transformers' `generate` with its faster "
                f"kind of cache, in the {overall['radar_over_generate_cells']} cells where that was measured.\n"
            )
    return text + replayed(full)


def replayed(full: Record) -> str:
    """What replay of the tasks' recorded rounds says, of every pair and temperature that was recorded."""
    by_temperature: dict[str, list[Record]] = {}
    for found in full.get("replay", {}).values():
        for temperature, tasks in found.items():
            by_temperature.setdefault(temperature, []).extend(tasks.values())
    rows = []
    for temperature, cells in sorted(by_temperature.items()):
        speeds = [cell["tokens_per_second"] for cell in cells]
        others = [name for name in METHODS if name in speeds[0] and name != "radar"]
        gains = [geometric_mean([one["radar"] / one[name] for one in speeds]) for name in others]
        of_these = [cell["radar"]["tokens_per_second"] / cell["best_fixed_of_these_rounds"] for cell in cells]
        possible = [cell["attainable"] / cell["best_fixed_of_these_rounds"] for cell in cells]
        gains += [geometric_mean(of_these), geometric_mean(possible)]
        rows.append([temperature, str(len(cells)), *[f"{gain:.3f}" for gain in gains]])
    if not rows:
        return ""
    head = ["temperature", "cells", *[METHODS[name] for name in others]]
    title = "\nRADAR over the others by replay of the tasks' recorded rounds, geometric mean:\n\n"
    return title + table([*head, "best depth of these very rounds", "(the oracle of the scores over that)"], rows)


def alphas(record: Record) -> str:
    """The reward's alpha against the throughput objective."""
    rows = [
        [
            calls,
            one["objective"],
            f"{one['over_eagle3']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})",
            f"{one['draft_calls']:.2f}",
            f"{one['mean_acceptance_length']:.2f}",
            one["collapsed"] or "",
        ]
        for calls, curve in record["curves"].items()
        for one in curve
    ]
    return table(["calls at most", "alpha", "speed over EAGLE-3", "draft calls", "acceptance", "collapsed"], rows)


def gaps(record: Record) -> str:
    """Share of the way from the best fixed depth to the oracle that the scores allow, by set and policy."""
    names = ("beam-mass threshold", "RADAR as published", "LSTM, throughput objective")
    rows = []
    for title, found in record["sets"].items():
        by_name = {row["name"]: row for row in found["policies"]}
        shares = [by_name[name]["gap_closed"] for name in names]
        rows.append([title, *["" if share is None else f"{share:.0%}" for share in shares]])
    return table(["set", *names], rows)


def rules(record: Record) -> str:
    """Every policy over EAGLE-3 in the geometric mean of the cells, by temperature, the fastest first."""
    text = ""
    for temperature, found in record["overall"].items():
        cells = max(one["cells"] for one in found.values())
        rows = [
            [name, f"{one['over_eagle3']:.3f}", f"{one['draft_calls']:.2f}", f"{one['mean_acceptance_length']:.2f}"]
            for name, one in sorted(found.items(), key=lambda item: -item[1]["over_eagle3"])
        ]
        text += f"Temperature {temperature}, {cells} cells of {', '.join(record['pairs'])}:\n\n"
        text += table(["policy", "over EAGLE-3", "draft calls", "acceptance length"], rows)
    return text


def round_parts(record: Record) -> dict[str, dict[str, float]]:
    """Milliseconds by part for every prefix."""
    return {
        f"{one['prefix']:,} tokens": {
            "verify": one["verify"],
            "first draft call": one["draft_calls"][0],
            f"{len(one['draft_calls']) - 1} more draft calls": sum(one["draft_calls"][1:]),
            "decisions": len(one["draft_calls"]) * one["decision"],
            "select, accept, commit": one["select"] + one["accept"] + one["commit"],
        }
        for one in record["parts"]
    }


def costs(record: Record) -> str:
    rows = [
        [prefix, name, f"{value:.3f}", f"{value / sum(parts.values()):.1%}"]
        for prefix, parts in round_parts(record).items()
        for name, value in parts.items()
    ]
    return table(["prefix", "part", "ms", "share"], rows)


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
    "embedded": plot_embedded, "end_to_end": plot_speeds, "end_to_end_stops": plot_stops,
    "calibration": plot_calibration, "alpha_ablation": plot_alphas, "oracle_gap": plot_gaps, "round": plot_round,
}  # fmt: skip
TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "End to end, wide pairs": ("end_to_end_full.json", speeds),
    "Rules of the literature, by replay": ("contenders.json", rules),
    "The published reward's alpha": ("alpha_ablation.json", alphas),
    "Share of the gap to the oracle": ("replay_policies.json", gaps),
    "A round by parts": ("round_h200.json", costs),
}


def write_tables(results: Path) -> list[str]:
    """report.md from the files that are there; returns what was left out."""
    left_out, text = [], "# Report\n"
    for title, (name, make) in TABLES.items():
        try:
            record = load(name, results)
        except FileNotFoundError as error:
            left_out.append(f"{title}: {error}")
            continue
        text += f"\n## {title}\n`{record['command']}`, {record['machine']['hardware']}\n\n{make(record)}"
    (results / "report.md").write_text(text, encoding="utf8")
    return left_out


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


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    left_out = write_tables(args.results)
    try:
        import matplotlib
    except ImportError:
        print("bench.report draws with matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for line in [*left_out, *write_plots(args.results, pyplot)]:
        print(f"left out: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
