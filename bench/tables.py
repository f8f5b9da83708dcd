"""Tables of the result files, as Markdown."""

from __future__ import annotations

import json
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
        text += table(["RADAR over", "ratio", "where both wrote the same text, and of how many"], gains)
        text += (
            f"\nDraft calls {overall['draft_calls_change']:+.1%}, acceptance length "
            f"{overall['acceptance_change']:+.1%} against EAGLE-3 with 8 calls.\n"
        )
        if "radar_over_generate" in overall:
            text += (
                f"\n{overall['radar_over_generate']:.2f} times the speed of transformers' greedy `generate` with its "
                f"faster kind of cache, in the {overall['radar_over_generate_cells']} cells where that was measured.\n"
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


def compared(results: Path) -> list[Record]:
    """The cells of every end-to-end comparison that is there, whatever its pairs and heads."""
    files = sorted(results.glob("end_to_end*_full.json"))
    return [cell for file in files for cell in json.loads(file.read_text(encoding="utf8"))["cells"].values()]


def gains(cells: Sequence[Record]) -> str:
    """What RADAR gains over the others, by the acceptance length that the head gives EAGLE-3 with 8 calls."""
    names = ("eagle3", "best_fixed", "threshold", "published")
    by_length: dict[int, list[Record]] = {}
    for cell in cells:
        by_length.setdefault(int(cell["methods"]["eagle3"]["mean_acceptance_length"]), []).append(cell)
    rows = []
    for least, here in sorted(by_length.items()):
        over = [geometric_mean([one["radar_over"][name]["value"] for one in here]) for name in names]
        rows.append([f"{least} to {least + 1}", str(len(here)), *[f"{gain:.3f}" for gain in over]])
    return table(["acceptance length of EAGLE-3", "cells", *[METHODS[name] for name in names]], rows)


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
        text += "\n" if text else ""
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
    if cells := compared(results):
        text += "\n## What the gain depends on\nRADAR over the others, cells of all end-to-end comparisons\n\n"
        text += gains(cells)
    (results / "report.md").write_text(text, encoding="utf8")
    return left_out
