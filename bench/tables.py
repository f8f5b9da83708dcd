"""The report's tables and README's, as Markdown, of what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TASKS = {"mt_bench": "MT-bench", "gsm8k": "GSM8K", "alpaca": "Alpaca", "mbpp": "MBPP"}
PAIRS = {"llama": "Llama-3.1-8B", "vicuna": "Vicuna-13B", "qwen": "Qwen3-8B"}  # by the names of runs: whose shapes
OWN = "_own"  # behind a pair's name: replay of rounds recorded from the very model that decoded
LABORATORY = "laboratory"  # a pair that we trained ourselves, told apart from the released model's
ALPHA = "published_alpha_"
METHODS = {
    "autoregressive": "plain decoding",
    "eagle3": "EAGLE-3, 8 calls, 60 nodes",
    "best_fixed": "best fixed setting",
    "gammatune": "GammaTune",
    "ddd": "DDD",
    "talon": "TALON",
    "opt_tree": "OPT-Tree",
    "expected_gain": "expected extra token",
    "specdec": "SpecDec++'s head",
    "ltd": "LTD's MLP",
    "threshold": "threshold",
    "threshold_16": "threshold, sixteen beams",
    "threshold_nodes_16": "threshold, nodes by mass, sixteen beams",
    "threshold_nodes": "threshold, nodes by mass",
    "published": "RADAR as published",
    "radar_60": "RADAR, 60 nodes",
    "radar": "RADAR",
    "radar_16": "RADAR, sixteen beams",
    "radar_of_llama": "RADAR, trained for Llama-3.1-8B",
    "radar_of_other_temperature": "RADAR, trained at the other temperature",
}
BOUNDS = {  # they have seen what judges them
    "best_fixed_hindsight": "best fixed setting of each task, in hindsight",
    "knowing": "oracle that knows the target's probabilities",
    "hindsight": "oracle that knows what is accepted",
}
Record = Mapping[str, Any]


def load(name: str, results: Path = RESULTS) -> Record:
    """A result file. FileNotFoundError names it."""
    path = results / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name}")
    record: Record = json.loads(path.read_text(encoding="utf8"))
    return record


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def interval(found: Sequence[float]) -> str:
    """Of a value with its bounds."""
    value, low, high = found
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def shown(method: str) -> str:
    """A method as tables name it."""
    if method.startswith(ALPHA):
        return f"RADAR as published, alpha {method.removeprefix(ALPHA)}"
    return METHODS.get(method) or BOUNDS.get(method) or method


def of_shape(pair: str) -> str:
    return f"{PAIRS['llama']}, laboratory pair" if pair == LABORATORY else PAIRS.get(pair, pair)


def costs_by_rows(record: Record) -> str:
    """Milliseconds of a verification by its rows, and of a draft call by its beams."""
    verify = []
    for shape, one in record["shapes"].items():
        for context in next(iter(one["verify"].values())):
            found = [by_context.get(context, []) for by_context in one["verify"].values()]
            verify.append([shape, f"{int(context):,}", *("/".join(f"{ms:.2f}" for ms in repeats) for repeats in found)])
    rows = list(next(iter(record["shapes"].values()))["verify"])
    text = "Milliseconds of a verification by its rows (1: a token of plain decoding); a second value is a repeat.\n\n"
    text += table(["shapes of", "context", *rows], verify)
    calls = [
        [shape, width + " (assumed)" * ("assumed" in ms), f"{int(context):,}", f"{ms['calls'][0]:.3f}",
         f"{mean(ms['calls'][1:]):.3f}", f"{1000 * ms['decision']:.1f}"]
        for shape, one in record["shapes"].items()
        for width, by_context in one["draft"].items()
        for context, ms in by_context.items()
    ]  # fmt: skip
    text += "\nDraft calls by their beams: the first one of a round, the mean of fifteen more, and a decision.\n\n"
    return text + table(["shapes of", "beams", "context", "first call, ms", "later ones, ms", "decision, us"], calls)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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
