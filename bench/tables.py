"""Tables of the result files, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.intervals import geometric_mean

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
NODES = 60  # of EAGLE-3's tree and the published policy's
Record = dict[str, Any]


def load(name: str, results: Path = RESULTS) -> Record:
    """A result file. FileNotFoundError names it."""
    path = results / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name}")
    record: Record = json.loads(path.read_text(encoding="utf8"))
    return record


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def nodes_of(full: Record, cell: Record, method: str) -> int:
    """Nodes that a method verifies in a cell: what was chosen for it."""
    chosen = full["pairs"][cell["pair"]]["choices"][f"T{cell['temperature']:g}"]
    if method == "best_fixed":
        return int(chosen["fixed"][cell["task"]][1])
    return int(chosen["nodes"].get(method, NODES))


def speeds(full: Record) -> str:
    """Speed over autoregressive decoding by cell, and what RADAR gains over the others."""
    rows = []
    drafting = list(METHODS)[1:]
    for name, cell in full["cells"].items():
        ratios = cell["over_autoregressive"]
        figures = [
            f"{ratios[method]['value']:.2f} ({nodes_of(full, cell, method)})" if method in ratios else ""
            for method in drafting
        ]
        plain = f"{cell['methods']['autoregressive']['tokens_per_second']:.0f}"
        same = f"{cell['texts_identical']} of {cell['prompts']}"
        rows.append([name, str(cell["prompts"]), plain, *figures, interval(cell["radar_over"]["eagle3"]), same])
    head = ["cell", "prompts", "tokens/s, autoregressive", *[METHODS[method] for method in drafting]]
    text = f"Tokens per second, all tasks of a pair together.\n\n{by_pair(full)}\n"
    text += "Times the speed of autoregressive decoding, in parentheses the nodes that are verified.\n\n"
    text += table([*head, "RADAR over EAGLE-3", "texts identical"], rows)
    for temperature, overall in full["overall"].items():
        text += gained(full, temperature, overall)
    return text


def by_pair(full: Record) -> str:
    """Tokens per second of every method, and of transformers' greedy `generate` where it was measured."""
    sums: dict[tuple[str, float], dict[str, list[float]]] = {}
    for cell in full["cells"].values():
        for method, one in cell["methods"].items():
            here = sums.setdefault((cell["pair"], cell["temperature"]), {}).setdefault(method, [0.0, 0.0])
            here[0] += one["tokens"]
            here[1] += one["seconds"]
    rows = []
    for (pair, temperature), found in sums.items():
        figures = [f"{found[name][0] / found[name][1]:.0f}" if name in found else "" for name in METHODS]
        generate = full.get("generate", {}).get(pair, {}).get("static", {}).get("tokens_per_second")
        rows.append([pair, f"{temperature:g}", "" if generate is None else f"{generate:.0f}", *figures])
    return table(["pair", "temperature", "generate, static cache, greedy", *METHODS.values()], rows)


def gained(full: Record, temperature: str, overall: Record) -> str:
    """RADAR over the others at one temperature: all texts, then the sensitivity check."""
    same = overall.get("radar_over_in_equal_texts", {})
    cells = [cell for cell in full["cells"].values() if f"{cell['temperature']:g}" == temperature]
    rows = [
        [METHODS[name], interval(found), f"{interval(same[name])}, {same[name]['texts']}" if name in same else ""]
        for name, found in overall["radar_over"].items()
    ]
    how = full.get("intervals", "95 %, each cell's prompts drawn by themselves: too narrow where pairs share prompts")
    text = f"\nTemperature {temperature}, geometric mean of {overall['cells']} cells, intervals of {how}:\n\n"
    text += table(["RADAR over", "all texts", "sensitivity: only texts that both wrote alike, and of how many"], rows)
    counts = {name: {nodes_of(full, cell, name) for cell in cells} for name in ("radar", "threshold", "eagle3")}
    verified = [f"{METHODS[name]} {' or '.join(map(str, sorted(found)))}" for name, found in counts.items()]
    text += (
        f"\nDraft calls {overall['draft_calls_change']:+.1%}, acceptance length {overall['acceptance_change']:+.1%} "
        f"against EAGLE-3 with 8 calls. Nodes verified: {'; '.join(verified)}.\n"
    )
    if "radar_over_generate" in overall:
        text += (
            f"\n{overall['radar_over_generate']:.2f} times the speed of transformers' greedy `generate` with its "
            f"faster kind of cache, in the {overall['radar_over_generate_cells']} cells where that was measured.\n"
        )
    return text


def compared(results: Path) -> list[Record]:
    """The cells of every end-to-end comparison that is there, whatever its pairs and heads."""
    files = sorted((results / "end_to_end").glob("end_to_end*.json"))
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


def rules(record: Record) -> str:
    """Every policy over EAGLE-3 in the geometric mean of the cells, by what was asked, the fastest first."""
    text = ""
    for label, found in record["overall"].items():
        cells = max(one["cells"] for one in found.values())
        rows = [
            [SHOWN.get(name, name), f"{one['over_eagle3']:.3f}"]
            + [f"{one[key]:.2f}" for key in ("draft_calls", "mean_acceptance_length")]
            for name, one in sorted(found.items(), key=lambda item: -item[1]["over_eagle3"])
        ]
        text += "\n" if text else ""
        text += f"Temperature {label}, {cells} cells of {', '.join(record['pairs'])}, trees of {NODES} nodes:\n\n"
        text += table(["policy", "over EAGLE-3", "draft calls", "acceptance length"], rows)
    return text


# what the oracles of `radar.replay.evaluate` are, and are not
SHOWN = {
    "attainable oracle": "backward induction on the scores, fitted to training rounds (no bound)",
    "oracle that knows the target's probabilities": "the target's probabilities known (a bound)",
    "hindsight oracle": "hindsight (a bound that needs the future)",
    "best fixed depth of these rounds": "best fixed depth, chosen on these very rounds",
}


def round_parts(record: Record) -> str:
    """Milliseconds by part for every prefix."""
    rows = []
    for one in record["parts"]:
        calls = one["draft_calls"]
        parts = {
            "verify": one["verify"],
            "first draft call": calls[0],
            f"{len(calls) - 1} more draft calls": sum(calls[1:]),
            "decisions": len(calls) * one["decision"],
            "select, accept, commit": one["select"] + one["accept"] + one["commit"],
        }
        whole = sum(parts.values())
        rows += [[f"{one['prefix']:,} tokens", name, f"{ms:.3f}", f"{ms / whole:.1%}"] for name, ms in parts.items()]
    return table(["prefix", "part", "ms", "share"], rows)


TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "End to end, laboratory pairs": ("end_to_end/end_to_end_h200.json", speeds),
    "End to end, the embedded pair at large shapes": ("end_to_end/end_to_end_embedded_h200.json", speeds),
    "Rules of the literature, by replay": ("replay/contenders.json", rules),
    "A round by parts": ("round/round_h200.json", round_parts),
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
