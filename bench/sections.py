"""The sections of report.md, each of what its files hold; one without its files is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.command import command_line
from bench.headline import EAGLE3, TEMPERATURES, Cells, Found, compared, name_of, peer_rates, peer_runs, rate, read
from bench.runs import AUTOREGRESSIVE, RADAR, Run, cells_of
from bench.tables import (
    ALPHA,
    BOUNDS,
    LABORATORY,
    METHODS,
    PAIRS,
    RESULTS,
    TASKS,
    costs_by_rows,
    interval,
    load,
    of_shape,
    round_parts,
    shown,
    table,
)

__all__ = ["judged", "readme_table", "report", "speed"]

HOW = """The pairs are a small released model with a head that `radar fit` made for it, widened to the exact shapes of
large models: the cost is the large model's, the behaviour the small one's. *Decoding* ran on the card. *Replay* goes
through recorded rounds of every measuring prompt and prices them at the card's costs, so that it judges every method
on every prompt (96 tokens at most; decoding wrote 64). Recorded from what decoded it has as many rounds and calls
(`replayed_identical` in summary.json), RADAR over EAGLE-3 but for `replay_error`, and 2 to 5 % fewer seconds.
Ratios are geometric means over cells (a task at one model's shapes); intervals are 95 %, prompts drawn anew, a prompt
once for all shapes: they cover prompts, not what another training, tuning or measurement of costs would have given.
Networks are one training each, on nine tenths of the training prompts; rules are tuned on half of them, and those that
are fitted (SpecDec++'s head, LTD's MLP, expected extra token) on 70 % of that half. `released_choices.json` says more.
"""
KINDS = [f"{kind}, T = {t:g}" for kind in ("replay", "decoding") for t in TEMPERATURES]  # of columns, see `_kinds`
CUT = "rows", "most_nodes", "most_calls"  # what a round of several rows is cut to
PEERS: dict[str, tuple[str, ...]] = {  # of README's table, by words of their names
    "`generate`, static cache": ("generate", "static"),
    "vLLM at its best": ("vllm",),
    "SGLang at its best": ("sglang",),
}


def report(results: Path = RESULTS) -> str:
    """report.md."""
    found, text = read(results), "# Report\n"
    sections: dict[str, Callable[[], str]] = {
        "What was measured": lambda: measured(found),
        "Methods": lambda: methods(found.replayed),
        "By task and shape": lambda: by_task(found),
        "A laboratory pair": lambda: laboratory(results),
        "Tokens per second": lambda: speeds(found),
        "Other libraries": lambda: peers(found),
        "The published reward by its alpha": lambda: alphas(found.replayed),
        "Training and tuning": lambda: choices(load("replay/released_choices.json", results)),
        "What the card takes by rows": lambda: costs_by_rows(load("round/costs_by_rows_h200.json", results)),
        "A round by parts": lambda: round_parts(load("round/round_h200.json", results)),
    }
    for title, make in sections.items():
        try:
            body = make()
        except FileNotFoundError:
            continue
        text += f"\n## {title}\n{body}" if body else ""
    return text


def measured(found: Found) -> str:
    rows = []
    for kind, runs in (("replay", found.replayed), ("decoding", found.decoded.alone)):
        ordered = sorted(runs, key=lambda run: (run["pair"], run["temperature"]))
        for (pair, temperature), some in groupby(ordered, key=lambda run: (run["pair"], run["temperature"])):
            own = list(some)
            prompts, methods = ({run[name] for run in own} for name in ("prompt", "method"))
            rows.append([kind, of_shape(pair), f"{temperature:g}", str(len(prompts)), str(len(methods))])
    if not rows:
        return ""
    text = f"{HOW}\n{table(['kind', 'shapes of', 'temperature', 'prompts of a task', 'methods'], rows)}"
    lines = []
    for about in found.decoded.about:
        machine, command = about["about"], command_line("bench.released", about["argv"])
        lines.append(f"`{command}`: {machine['hardware']}, torch {machine['torch']}, commit {machine['commit'][:7]}.\n")
    return text + "".join(f"\n{line}" for line in dict.fromkeys(lines))  # a stopped command goes on as it was


def judged(runs: Iterable[Run], temperature: float, names: Iterable[str]) -> list[tuple[str, Any, Cells]]:
    """Methods with their speed over EAGLE-3 and the cells that it is of, the fastest first."""
    found = [(name, compared(runs, temperature, name, EAGLE3)) for name in names]
    rows = [(name, *one) for name, one in found if one is not None]
    return sorted(rows, key=lambda row: -row[1].value)


def methods(runs: Sequence[Run]) -> str:
    """Every method over EAGLE-3, by temperature."""
    text = ""
    for temperature in TEMPERATURES:
        names = {run["method"] for run in runs} - {EAGLE3}
        rows = judged(runs, temperature, (name for name in sorted(names) if not name.startswith(ALPHA)))
        if rows:
            text += f"\nTemperature {temperature:g}, by replay; means are of rounds.\n\n" + over_eagle3(rows)
    return text.removeprefix("\n") + ("\n![Methods over EAGLE-3](methods.png)\n" if text else "")


def over_eagle3(rows: Iterable[tuple[str, Any, Cells]]) -> str:
    """A line for each method, and one for EAGLE-3 on the cells of the first."""
    lines, cells = [], None
    for name, ratio, cells in rows:
        lines.append([shown(name) + (" (a bound)" if name in BOUNDS else ""), interval(ratio), *rounds_of(cells, name)])
    if cells is not None:
        lines.append([shown(EAGLE3), "1", *rounds_of(cells, EAGLE3)])
    return table(["method", "over EAGLE-3", "draft calls", "nodes", "tokens a round", "cells"], lines)


def rounds_of(cells: Cells, method: str) -> list[str]:
    """Means of a method's rounds in these cells, and how many cells there are."""
    own = [run for cell in cells for run in cell if run["method"] == method]
    calls, drafted, tokens, rounds = (sum(run[key] for run in own) for key in ("calls", "drafted", "tokens", "rounds"))
    return [f"{calls / rounds:.2f}", f"{drafted / rounds + 1:.0f}", f"{tokens / rounds:.2f}", str(len(cells))]


def by_task(found: Found) -> str:
    """RADAR over EAGLE-3 in every cell, by replay and by decoding."""
    ratios, kinds = {}, _kinds(found)
    for column, (runs, temperature) in enumerate(kinds):
        for cell in cells_of(runs, temperature, RADAR, EAGLE3):
            if one := compared(cell, temperature, RADAR, EAGLE3):
                ratios[cell[0]["pair"], cell[0]["task"], column] = interval(one[0])
    rows = [
        [of_shape(pair), TASKS.get(task, task), *(ratios.get((pair, task, column), "") for column in range(len(kinds)))]
        for pair, task in {(run["pair"], run["task"]): None for run in [*found.replayed, *found.decoded.alone]}
    ]
    return "RADAR over EAGLE-3.\n\n" + table(["shapes of", "task", *KINDS], rows) if rows else ""


def _kinds(found: Found) -> list[tuple[Sequence[Run], float]]:
    return [(runs, t) for runs in (found.replayed, found.decoded.alone) for t in TEMPERATURES]


def laboratory(results: Path) -> str:
    """The pair that ships, at a large model's shapes: methods by replay and by decoding."""
    found, rows = read(results, (LABORATORY,)), []
    for name in METHODS:
        kinds = [compared(runs, temperature, name, EAGLE3) for runs, temperature in _kinds(found)]
        if name != EAGLE3 and any(kinds):
            rows.append([shown(name), *("" if one is None else interval(one[0]) for one in kinds)])
    text = f"A pair that we trained ourselves, which ships, at {of_shape('llama')}'s shapes: over EAGLE-3.\n\n"
    return text + table(["method", *KINDS], rows) if rows else ""


def speed(found: Found, pair: str, temperature: float, method: str, rows: int = 1) -> float | None:
    """Tokens a second of a method, on prompts that all methods of the pair have; of several rows the turns' median."""
    if rows > 1:
        return rate(found, method, rows, pair)
    there = [run for run in found.decoded.alone if (run["pair"], run["temperature"]) == (pair, temperature)]
    cells = cells_of(there, temperature, *{run["method"] for run in there})
    own = [run for cell in cells for run in cell if run["method"] == method]
    return sum(run["tokens"] for run in own) / sum(run["seconds"] for run in own) if own else None


def speeds(found: Found) -> str:
    """Of every pair by temperature, then of several rows."""
    kinds = {(run["pair"], run["temperature"], 1) for run in found.decoded.alone}
    kinds |= {(run["pair"], 0.0, run["rows"]) for run in found.decoded.together}
    names = [name for name in METHODS if any(run["method"] == name for run in found.decoded.alone)]
    rows = [
        [of_shape(pair), f"{temperature:g}", str(count)]
        + ["" if (one := speed(found, pair, temperature, name, count)) is None else f"{one:.0f}" for name in names]
        for pair, temperature, count in sorted(kinds, key=lambda kind: (kind[2], list(PAIRS).index(kind[0]), kind[1]))
    ]
    text = "All prompts that all methods decoded, the prompt's pass included.\n\n"
    text += table(["shapes of", "temperature", "rows", *map(shown, names)], rows)
    cuts = {tuple(run[key] for key in CUT) for run in found.decoded.together if CUT[-1] in run}
    for count, nodes, calls in sorted(cuts):
        text += f"\nRounds of {count} rows verify {nodes} nodes together behind {calls} calls at most, EAGLE-3's too.\n"
    return text + "\n![Where RADAR stops, what rows cost, other libraries](card.png)\n" if rows else ""


def peers(found: Found) -> str:
    """Other libraries on the same checkpoint and prompts, and RADAR over them."""
    runs, rows = found.decoded.alone + list(peer_runs(found)), []
    for name in (AUTOREGRESSIVE, RADAR):
        own = [run for run in runs if (run["pair"], run["temperature"], run["method"]) == ("llama", 0.0, name)]
        if own and found.peers:
            waits = sorted(run["prefill_seconds"] for run in own)
            length = sum(run["tokens"] for run in own) / sum(run["rounds"] for run in own)
            same, wait = f"{len(own)} of {len(own)}" if name == AUTOREGRESSIVE else "", 1e3 * waits[len(waits) // 2]
            own_speed = f"{speed(found, 'llama', 0.0, name):.0f}"
            rows.append([shown(name), "1", own_speed, f"{length:.2f}", "", f"{wait:.0f}", same, ""])
    first = {(name_of(one), one["rows_at_once"]): one for one in reversed(found.peers)}
    for (name, count), one in sorted(first.items(), key=lambda item: (item[0][1], item[0][0])):
        alone = compared(runs, 0.0, RADAR, name) if count == 1 else None
        theirs, ours = peer_rates(found)[name, count], speed(found, "llama", 0.0, RADAR, count)
        ratio = interval(alone[0]) if alone else "" if ours is None else f"{ours / theirs:.3f}"
        length = one.get("tokens_per_round")
        waits = sorted(row["first"] for row in one.get("rows", ()) if row.get("first"))
        figures = [f"{theirs:.0f}", f"{length:.2f}" if length else "", ratio]
        figures.append(f"{1e3 * waits[len(waits) // 2]:.0f}" if waits else "")
        figures.append(f"{one['texts_equal']} of {one['texts']}" if "texts_equal" in one else "")
        rows.append([name, str(count), *figures, f"{one['start_seconds']:.0f}"])
    text = f"On the {of_shape('llama')} pair, greedy; several rows: all texts together, the median of three turns.\n\n"
    head = ["", "rows", "tokens/s", "tokens a round", "RADAR over it", "first token, ms"]
    return text + table([*head, "texts that are ours", "start, s"], rows) if rows else ""


def alphas(runs: Sequence[Run]) -> str:
    told = {run["method"] for run in runs if run["method"].startswith(ALPHA)}
    names = sorted(told, key=lambda name: float(name.removeprefix(ALPHA)))
    found = [(t, [(n, *one) for n in names if (one := compared(runs, t, n, EAGLE3))]) for t in TEMPERATURES]
    return "\n".join(f"Temperature {t:g}, by replay.\n\n{over_eagle3(rows)}" for t, rows in found if rows)


def choices(record: Any) -> str:
    """What is known of transfer and of calibration: figures by name, then by name."""
    text = ""
    for name in ("transfer", "calibration"):
        if found := record.get(name):
            columns = list(dict.fromkeys(key for one in found["figures"].values() for key in one))
            rows = [[row, *(f"{one[key]:.3f}" if key in one else "" for key in columns)]
                    for row, one in found["figures"].items()]  # fmt: skip
            text += f"\n{found['what']}\n\n{table(['', *columns], rows)}"
    return text.removeprefix("\n")


def readme_table(results: Path = RESULTS) -> str:
    """README's one table: speeds that were decoded, one request at a time, greedily; empty without them."""
    found = read(results)

    def cell(pair: str, method: str) -> str:
        return "-" if (one := speed(found, pair, 0.0, method)) is None else f"{one:.0f}"

    def peer(pair: str, words: Sequence[str]) -> str:
        rates = peer_rates(found).items() if pair == "llama" else ()
        own = [one for (name, rows), one in rates if rows == 1 and all(word in name for word in words)]
        return f"{max(own):.0f}" if own else "-"

    rows = []
    for pair in dict.fromkeys(run["pair"] for run in found.decoded.alone):
        own = [run for run in found.decoded.alone if run["pair"] == pair]
        ratios = [compared(own, temperature, RADAR, EAGLE3) for temperature in TEMPERATURES]
        speeds = [cell(pair, AUTOREGRESSIVE), *(peer(pair, words) for words in PEERS.values())]
        speeds += [cell(pair, EAGLE3), cell(pair, "threshold"), cell(pair, RADAR)]
        rows.append([of_shape(pair), *speeds, *("-" if one is None else interval(one[0]) for one in ratios)])
    head = ["shapes of", "plain decoding", *PEERS, "EAGLE-3, 8 calls, 60 nodes"]
    return table([*head, "threshold", "RADAR", "RADAR over EAGLE-3", "at temperature 1"], rows) if rows else ""
