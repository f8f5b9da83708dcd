"""Single generations of a comparison: how they are kept, and which of them count.

A run is pair, task, temperature, method, prompt (its number in the task), tokens, seconds, rounds, calls, accepted,
stops, text (a digest), prompt_tokens, prefill_seconds, and of the tree nodes and max_calls. A cell is one pair, task
and temperature.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from radar.generation.base import GenerationOutput

__all__ = [
    "AUTOREGRESSIVE",
    "RADAR",
    "Cell",
    "Run",
    "cells_of",
    "digest",
    "equal_texts",
    "key_of",
    "read_runs",
    "run_of",
]

AUTOREGRESSIVE, RADAR = "autoregressive", "radar"
KEY = ("pair", "task", "temperature", "method", "prompt")
Run = Mapping[str, Any]


class Cell(NamedTuple):
    """One pair, task and temperature."""

    pair: str
    task: str
    temperature: float


def key_of(run: Run) -> tuple[Any, ...]:
    """What tells runs apart."""
    return tuple(run[name] for name in KEY)


def run_of(output: GenerationOutput) -> dict[str, Any]:
    """What is kept of a generation, beside its key and its tree."""
    m = output.metrics
    return {
        "prompt_tokens": m.num_prompt_tokens, "prefill_seconds": m.seconds_by_part["prefill"],
        "tokens": m.num_tokens, "seconds": m.seconds, "rounds": m.num_spec_steps, "calls": m.num_draft_calls,
        "accepted": m.num_accepted_draft_tokens, "stops": m.stop_histogram,
        "text": digest(output.token_ids),
    }  # fmt: skip


def digest(ids: Sequence[int]) -> str:
    """What tells texts apart."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:12]


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Whole lines; a torn last one is cut off, as its run is done again."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        file.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def cells_of(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """Runs by cell, of prompts that every method of the pair has finished: a stopped comparison is no bias."""
    cells: dict[Cell, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    methods: dict[str, set[str]] = defaultdict(lambda: {RADAR})  # it comes last: without it nothing is whole
    for run in runs:
        cells[Cell(run["pair"], run["task"], run["temperature"])][run["prompt"]].append(run)
        methods[run["pair"]].add(run["method"])
    whole = {
        cell: [run for found in prompts.values() if len(found) == len(methods[cell.pair]) for run in found]
        for cell, prompts in cells.items()
    }
    return {cell: kept for cell, kept in whole.items() if kept}


def equal_texts(runs: Sequence[Run], method: str, reference: str) -> list[Run]:
    """The two methods' runs of prompts for which both wrote the same text.

    In 16 bits a tie of two tokens may fall either way, and then a ratio compares two texts. But leaving those out
    selects on the outcome: it shows how far the ratio depends on them and is no figure of its own.
    """
    names = (method, reference)
    texts = {name: {run["prompt"]: run["text"] for run in runs if run["method"] == name} for name in names}
    same = {prompt for prompt, text in texts[method].items() if texts[reference].get(prompt) == text}
    return [run for run in runs if run["method"] in names and run["prompt"] in same]
