"""What the runs of an end-to-end comparison say: figures by cell, ratios with intervals, replay beside decoding."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from bench.intervals import geometric_mean, over
from bench.runs import AUTOREGRESSIVE, RADAR, Run, cells_of, equal_texts
from radar.config import TreeConfig
from radar.tools.costs import CostTable

__all__ = ["cost_errors", "summarise"]

UNDECIDED = ("eagle3", "best_fixed")  # methods that pay for no decision
INTERVALS = "95 %, a task's prompts drawn once for all pairs"


def summarise(
    runs: Iterable[Run],
    generated: Mapping[str, Mapping[str, Any]],
    predicted: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Everything that the runs say.

    Args:
        runs: of all cells.
        generated: by pair, tokens per second of transformers' `generate` by kind of cache.
        predicted: by pair and temperature ("0", "1"), what `bench.lab.judge.predict` returned.

    Returns:
        `cells`: by name the methods' figures, ratios of RADAR over all texts and, as a sensitivity check, over those
        that both methods wrote alike; `overall`: by temperature, the geometric means over cells.
    """
    found = cells_of(runs)
    cells: dict[str, dict[str, Any]] = {}
    for cell, kept in sorted(found.items()):
        methods = list(dict.fromkeys(run["method"] for run in kept))
        by_prompt: dict[int, set[str]] = defaultdict(set)
        for run in kept:
            by_prompt[run["prompt"]].add(run["text"])
        others = [name for name in methods if name != RADAR]
        drafting = [name for name in methods if name != AUTOREGRESSIVE]
        figures = {name: _figures([run for run in kept if run["method"] == name]) for name in methods}
        entry: dict[str, Any] = {
            **cell._asdict(),
            "prompts": len(by_prompt),
            "texts_identical": sum(len(texts) == 1 for texts in by_prompt.values()),
            "methods": figures,
            "radar_over": {name: over([kept], RADAR, name)._asdict() for name in others},
            "radar_over_in_equal_texts": _in_equal_texts([kept]),
            "over_autoregressive": {name: over([kept], name, AUTOREGRESSIVE)._asdict() for name in drafting},
        }
        if cell.pair in generated:
            fastest = max(row["tokens_per_second"] for row in generated[cell.pair].values())
            entry["radar_over_generate"] = figures[RADAR]["tokens_per_second"] / fastest
        replayed = predicted.get(cell.pair, {}).get(f"{cell.temperature:g}", {}).get(cell.task)
        if replayed is not None:
            entry["replay"] = _replayed(replayed, kept)
        cells[f"{cell.pair} {cell.task} T={cell.temperature:g}"] = entry
    overall = {}
    for temperature in sorted({cell.temperature for cell in found}):
        here = [kept for cell, kept in sorted(found.items()) if cell.temperature == temperature]
        entries = [entry for entry in cells.values() if entry["temperature"] == temperature]
        overall[f"{temperature:g}"] = _overall(here, entries)
    return {"intervals": INTERVALS, "cells": cells, "overall": overall}


def cost_errors(runs: Iterable[Run], costs: CostTable) -> dict[str, dict[str, float]]:
    """What the cost table says the measured rounds take, over what they took, less 1: by temperature and method.

    The prompt's pass is no round and is left out; a run's rounds count with the context in its middle.
    """
    undecided = costs.without_decisions()
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for run in runs:
        if run["method"] == AUTOREGRESSIVE:
            continue
        total = sums[f"{run['temperature']:g}"][run["method"]]
        calls = torch.tensor([int(call) for call in run["stops"]])
        context = torch.full_like(calls, run["prompt_tokens"] + run["tokens"] // 2)
        table = undecided if run["method"] in UNDECIDED else costs
        tree = TreeConfig(total_tokens=run["nodes"], max_calls=run["max_calls"])
        times = table.round_seconds(calls, context, tree)
        total[0] += sum(float(time) * count for time, count in zip(times, run["stops"].values(), strict=True))
        total[1] += run["seconds"] - run["prefill_seconds"]
    return {
        temperature: {method: predicted / measured - 1 for method, (predicted, measured) in methods.items()}
        for temperature, methods in sums.items()
    }


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Of one method in one cell."""
    total = {name: sum(run[name] for run in runs) for name in ("tokens", "seconds", "rounds", "calls", "accepted")}
    stops: Counter[str] = Counter()
    for run in runs:
        stops.update(run["stops"])
    return {
        **total,
        "nodes": max(run["nodes"] for run in runs),
        "tokens_per_second": total["tokens"] / total["seconds"],
        "mean_acceptance_length": 1 + total["accepted"] / max(1, total["rounds"]),
        "draft_calls_per_round": total["calls"] / max(1, total["rounds"]),
        "stop_histogram": dict(sorted(stops.items(), key=lambda item: int(item[0]))),
    }


def _in_equal_texts(cells: Sequence[Sequence[Run]]) -> dict[str, dict[str, float]]:
    """RADAR over the drafting methods, and how many texts that is of; cells without an equal text are left out."""
    found = {}
    for name in sorted({run["method"] for runs in cells for run in runs} - {AUTOREGRESSIVE, RADAR}):
        if kept := [same for runs in cells if (same := equal_texts(runs, RADAR, name))]:
            counts = {"texts": sum(map(len, kept)) // 2, "cells": len(kept)}
            found[name] = over(kept, RADAR, name)._asdict() | counts
    return found


def _replayed(replayed: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Replay prices rounds alone, so the measured ratio leaves out the prompt's pass and its token."""

    def in_rounds(method: str) -> float:
        own = [run for run in runs if run["method"] == method]
        tokens, seconds = (sum(run[name] for run in own) for name in ("tokens", "seconds"))
        return float((tokens - len(own)) / (seconds - sum(run["prefill_seconds"] for run in own)))

    speeds = replayed["tokens_per_second"]
    expected = speeds[RADAR] / speeds["eagle3"]
    return {"radar_over_eagle3": expected, "error": expected / (in_rounds(RADAR) / in_rounds("eagle3")) - 1}


def _overall(kept: Sequence[Sequence[Run]], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in entries[0]["radar_over"] if all(name in entry["radar_over"] for entry in entries)]
    out: dict[str, Any] = {
        "cells": len(entries),
        "radar_over": {name: over(kept, RADAR, name)._asdict() for name in names},
        "radar_over_in_equal_texts": _in_equal_texts(kept),
        "texts": sum(entry["prompts"] for entry in entries),
        "texts_identical": sum(entry["texts_identical"] for entry in entries),
    }
    changes = {"draft_calls_change": "draft_calls_per_round", "acceptance_change": "mean_acceptance_length"}
    for change, field in changes.items():
        ours, theirs = (sum(entry["methods"][name][field] for entry in entries) for name in (RADAR, "eagle3"))
        out[change] = ours / theirs - 1
    if generated := [entry["radar_over_generate"] for entry in entries if "radar_over_generate" in entry]:
        out["radar_over_generate"] = geometric_mean(generated)
        out["radar_over_generate_cells"] = len(generated)  # those of pairs whose `generate` was measured
    if all("replay" in entry for entry in entries):
        out["replay_error"] = max(abs(entry["replay"]["error"]) for entry in entries)
    return out
