"""Statistics of an end-to-end comparison: speeds from sums, ratios with intervals by prompt, and the flat summary.

A run is one generation, as `bench.end_to_end` writes them: pair, task, temperature, method, prompt, repeat, tokens,
seconds, rounds, calls, accepted, stops, text (a digest), prompt_tokens, prefill_seconds, and of the tree nodes and
max_calls. A cell is one pair, task and temperature.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.train.costs import CostTable

__all__ = [
    "FLAT_KEYS", "Interval", "cells_of", "cost_errors", "equal_texts", "flat", "geometric_mean", "over", "summarise"
]  # fmt: skip

AUTOREGRESSIVE, RADAR, FIXED_DEPTHS = "autoregressive", "radar", ("eagle3", "best_fixed")
RESAMPLES = 2000
Run = Mapping[str, Any]
FLAT_KEYS = (
    "radar_over_ar_min", "radar_over_ar_max", "radar_over_generate_geomean", "radar_over_eagle3_geomean",
    "radar_over_best_fixed_geomean", "radar_over_published_geomean", "radar_over_threshold_geomean",
    "draft_calls_change", "acceptance_change", "oracle_gap_closed", "replay_error", "commit", "command",
)  # fmt: skip


class Cell(NamedTuple):
    """One pair, task and temperature."""

    pair: str
    task: str
    temperature: float


class Interval(NamedTuple):
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float


def cells_of(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """Runs by cell, of prompts and repeats that every method of the pair has finished: a stopped run is no bias.

    Plain decoding is measured in the first repeat alone.
    """
    cells: dict[Cell, list[Run]] = defaultdict(list)
    of_pair: dict[str, set[str]] = defaultdict(lambda: {RADAR})  # it comes last: without it nothing is whole
    for run in runs:
        cells[Cell(run["pair"], run["task"], run["temperature"])].append(run)
        of_pair[run["pair"]].add(run["method"])
    whole = {}
    for cell, found in cells.items():
        methods = of_pair[cell.pair] - {AUTOREGRESSIVE}
        plain = {run["prompt"] for run in found if run["method"] == AUTOREGRESSIVE}
        done = Counter((run["prompt"], run["repeat"]) for run in found if run["method"] != AUTOREGRESSIVE)
        whole_ones = {key for key, count in done.items() if count == len(methods) and (not plain or key[0] in plain)}
        if kept := [run for run in found if (run["prompt"], run["repeat"]) in whole_ones]:
            whole[cell] = kept
    return whole


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def equal_texts(runs: Iterable[Run], method: str, reference: str) -> list[Run]:
    """The two methods' runs of prompts and repeats for which both wrote the same text.

    In 16 bits a tie of two tokens may fall either way, and then a ratio compares two texts.
    """
    found: dict[tuple[Any, Any], list[Run]] = defaultdict(list)
    for run in runs:
        if run["method"] in (method, reference):
            found[run["prompt"], run["repeat"]].append(run)
    return [run for two in found.values() if len(two) == 2 and two[0]["text"] == two[1]["text"] for run in two]


def _sums(runs: Sequence[Run], method: str, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """(tokens [P], seconds [P]) of a method by prompt, over the repeats."""
    row = {prompt: index for index, prompt in enumerate(prompts)}
    tokens, seconds = torch.zeros(2, len(prompts), dtype=torch.float64)
    for run in runs:
        if run["method"] == method:
            tokens[row[run["prompt"]]] += run["tokens"]
            seconds[row[run["prompt"]]] += run["seconds"]
    return tokens, seconds


def over(cells: Sequence[Sequence[Run]], method: str, reference: str, *, seed: int = 0) -> Interval:
    """Speed of a method over another's: the geometric mean over cells of ratios of sums.

    The interval is by paired bootstrap: prompts are drawn anew within each cell, both methods' with them.
    """
    generator = torch.Generator().manual_seed(seed)
    logarithms, draws = 0.0, torch.zeros(RESAMPLES, dtype=torch.float64)
    for runs in cells:
        prompts = sorted({run["prompt"] for run in runs})
        picked = torch.randint(len(prompts), (RESAMPLES, len(prompts)), generator=generator)
        speeds, resampled = [], []
        for name in (method, reference):
            tokens, seconds = _sums(runs, name, prompts)
            speeds.append((tokens.sum() / seconds.sum()).item())
            resampled.append(tokens[picked].sum(1) / seconds[picked].sum(1))
        logarithms += math.log(speeds[0] / speeds[1])
        draws += (resampled[0] / resampled[1]).log()
    low, high = torch.quantile(draws / len(cells), torch.tensor([0.025, 0.975], dtype=torch.float64)).exp().tolist()
    return Interval(math.exp(logarithms / len(cells)), low, high)


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Of one method in one cell."""
    total = {name: sum(run[name] for run in runs) for name in ("tokens", "seconds", "rounds", "calls", "accepted")}
    stops: Counter[str] = Counter()
    for run in runs:
        stops.update(run["stops"])
    speeds = defaultdict(lambda: [0.0, 0.0])
    for run in runs:
        speeds[run["repeat"]][0] += run["tokens"]
        speeds[run["repeat"]][1] += run["seconds"]
    rates = [tokens / seconds for tokens, seconds in speeds.values()]
    return {
        **total,
        "tokens_per_second": total["tokens"] / total["seconds"],
        "slowest_repeat": min(rates),
        "fastest_repeat": max(rates),
        "mean_acceptance_length": 1 + total["accepted"] / max(1, total["rounds"]),
        "draft_calls_per_round": total["calls"] / max(1, total["rounds"]),
        "stop_histogram": dict(sorted(stops.items(), key=lambda item: int(item[0]))),
    }


def summarise(
    runs: Iterable[Run],
    generated: Mapping[str, Mapping[str, Any]],
    predicted: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Everything that the runs say.

    Args:
        runs: of all cells.
        generated: by pair, tokens per second of transformers' `generate` by kind of cache.
        predicted: by pair and temperature ("0", "1"), what `bench.lab.policies.predict` returned.

    Returns:
        `cells`: by name the methods' figures, ratios of RADAR with intervals, and whether the texts are the same;
        `overall`: by temperature, the geometric means over cells.
    """
    found = cells_of(runs)
    cells: dict[str, dict[str, Any]] = {}
    for cell, kept in sorted(found.items()):
        methods = {run["method"]: None for run in kept}
        figures = {name: _figures([run for run in kept if run["method"] == name]) for name in methods}
        by_text: dict[tuple[Any, Any], list[str]] = defaultdict(list)
        for run in kept:
            by_text[run["prompt"], run["repeat"]].append(run["text"])
        texts = [set(written) for written in by_text.values() if len(written) == len(methods)]  # by every method
        entry: dict[str, Any] = {
            **cell._asdict(),
            "prompts": len({run["prompt"] for run in kept}),
            "repeats": len({run["repeat"] for run in kept}),
            "texts": len(texts),
            "texts_identical": sum(len(written) == 1 for written in texts),
            "methods": figures,
            "radar_over": {name: over([kept], RADAR, name)._asdict() for name in methods if name != RADAR},
            "radar_over_in_equal_texts": _in_equal_texts([kept]),
            "over_autoregressive": {
                name: over([kept], name, AUTOREGRESSIVE)._asdict() for name in methods if name != AUTOREGRESSIVE
            },
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
    return {"cells": cells, "overall": overall}


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
    measured = in_rounds(RADAR) / in_rounds("eagle3")
    expected = speeds[RADAR] / speeds["eagle3"]
    return {
        "radar_over_eagle3": expected,
        "error": expected / measured - 1,
        "attainable_over_best_fixed": replayed["attainable"] / replayed["best_fixed_of_these_rounds"],
        "radar_over_best_fixed": replayed["radar"]["tokens_per_second"] / replayed["best_fixed_of_these_rounds"],
    }


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
        table = undecided if run["method"] in FIXED_DEPTHS else costs
        tree = TreeConfig(total_tokens=run["nodes"], max_calls=run["max_calls"])
        times = table.round_seconds(calls, context, tree)
        total[0] += sum(float(time) * count for time, count in zip(times, run["stops"].values(), strict=True))
        total[1] += run["seconds"] - run["prefill_seconds"]
    return {
        temperature: {method: predicted / measured - 1 for method, (predicted, measured) in methods.items()}
        for temperature, methods in sums.items()
    }


def _overall(kept: Sequence[Sequence[Run]], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in entries[0]["radar_over"] if all(name in entry["radar_over"] for entry in entries)]
    speedups = [entry["radar_over"][AUTOREGRESSIVE]["value"] for entry in entries]
    out: dict[str, Any] = {
        "cells": len(entries),
        "radar_over": {name: over(kept, RADAR, name)._asdict() for name in names},
        "radar_over_in_equal_texts": _in_equal_texts(kept),
        "radar_over_autoregressive_min": min(speedups),
        "radar_over_autoregressive_max": max(speedups),
        "texts": sum(entry["texts"] for entry in entries),
        "texts_identical": sum(entry["texts_identical"] for entry in entries),
    }
    for change, field in (
        ("draft_calls_change", "draft_calls_per_round"),
        ("acceptance_change", "mean_acceptance_length"),
    ):
        ours, theirs = (sum(entry["methods"][name][field] for entry in entries) for name in (RADAR, "eagle3"))
        out[change] = ours / theirs - 1
    if generated := [entry["radar_over_generate"] for entry in entries if "radar_over_generate" in entry]:
        out["radar_over_generate"] = geometric_mean(generated)
        out["radar_over_generate_cells"] = len(generated)  # those of pairs whose `generate` was measured
    if all("replay" in entry for entry in entries):
        replays = [entry["replay"] for entry in entries]
        reached = geometric_mean([one["radar_over_best_fixed"] for one in replays]) - 1
        possible = geometric_mean([one["attainable_over_best_fixed"] for one in replays]) - 1
        out["oracle_gap_closed"] = reached / possible if possible > 0 else None
        out["replay_error"] = max(abs(one["error"]) for one in replays)
    return out


def flat(summary: Mapping[str, Any], *, commit: str, command: str) -> dict[str, Any]:
    """The figures at temperature 0 under `FLAT_KEYS`; null where something was not measured."""
    overall = summary["overall"].get("0", {})
    ratios = overall.get("radar_over", {})
    values = {
        "radar_over_ar_min": overall.get("radar_over_autoregressive_min"),
        "radar_over_ar_max": overall.get("radar_over_autoregressive_max"),
        "radar_over_generate_geomean": overall.get("radar_over_generate"),
        **{
            f"radar_over_{name}_geomean": ratios.get(name, {}).get("value")
            for name in ("eagle3", "best_fixed", "published", "threshold")
        },
        **{
            name: overall.get(name)
            for name in ("draft_calls_change", "acceptance_change", "oracle_gap_closed", "replay_error")
        },
        "commit": commit,
        "command": command,
    }
    return {name: values[name] for name in FLAT_KEYS}
