"""Single generations of a comparison: how they are kept, and which of them count.

A run is pair, task, temperature, method, prompt (its number in the task), tokens, seconds, rounds, calls, drafted; one
that was decoded and not replayed has accepted, stops, text (a digest), prompt_tokens and prefill_seconds as well. A
cell is one pair, task and temperature.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from radar.generation.base import GenerationOutput

__all__ = ["AUTOREGRESSIVE", "RADAR", "Kept", "Run", "cells_of", "digest", "kept", "key_of", "read_runs", "run_of"]

AUTOREGRESSIVE, RADAR = "autoregressive", "radar"
KEY = ("pair", "task", "temperature", "method", "prompt")
Run = Mapping[str, Any]


class Kept(NamedTuple):
    """What a file of runs holds: runs of one text, of several at once, and what is said of the machine."""

    alone: list[Run]
    together: list[Run]
    about: list[Run]


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


def kept(file: Path) -> Kept:
    """A result file, .jsonl.xz; empty if there is none. A prompt that was decoded again counts as the last time.

    ValueError: replay, which repeats itself exactly, said two things of one prompt.
    """
    alone: dict[tuple[Any, ...], Run] = {}
    together: dict[tuple[Any, ...], Run] = {}
    about = []
    if file.is_file():
        with lzma.open(file, "rt", encoding="utf8") as lines:
            for run in map(json.loads, lines):
                if "about" in run:
                    about.append(run)
                elif "prompt" not in run:
                    together[run["pair"], run["method"], run["rows"], run.get("turn")] = run
                elif "text" not in run and alone.get(key_of(run), run) != run:
                    raise ValueError(f"{file.name} says two things of {key_of(run)}: was another recording appended?")
                else:
                    alone[key_of(run)] = run
    return Kept(list(alone.values()), list(together.values()), about)


def cells_of(runs: Iterable[Run], temperature: float, *methods: str) -> list[list[Run]]:
    """The methods' runs of the prompts that all of them have finished, by pair and task: a stopped one is no bias."""
    cells: dict[tuple[str, str], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["temperature"] == temperature and run["method"] in methods:
            cells[run["pair"], run["task"]][run["prompt"]].append(run)
    whole = [
        [run for found in prompts.values() if len(found) == len(methods) for run in found]
        for _, prompts in sorted(cells.items())
    ]
    return [cell for cell in whole if cell]
