"""Which prompts serve what, and where their rounds lie: `train` and `develop-KIND` fit and tune, the tasks judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radar import TreeConfig
from radar.replay.recording import read_rounds
from radar.replay.rounds import RoundDataset
from radar.tools.prompts import PromptLine, encode_prompt, load_prompts, read_lines
from radar.tools.twins import near_twins_of

TASKS = ("mt_bench", "gsm8k", "alpaca", "mbpp")
NEAREST = {"mt_bench": "chat", "gsm8k": "gsm8k", "alpaca": "chat", "mbpp": "mbpp"}  # development prompts of a task
SOURCES = {"chat": ("codegen", "roleplay", "toolformer"), "gsm8k": ("gsm8k",), "mbpp": ("mbpp",)}
NODES = (32, 60, 100)  # of the grid that the best fixed setting is chosen from
TRAIN = "train"  # the set that networks learn from
TREE = TreeConfig()


def measuring(prompts: Path) -> list[str]:
    """Every prompt that measures, of a folder of `q_TASK.jsonl`."""
    return [line.text for task in TASKS for line in load_prompts(prompts / f"q_{task}.jsonl")]


def prompt_sets(data: Path, prompts: Path, *, train: int, develop: int, limit: int) -> dict[str, list[PromptLine]]:
    """Prompts by set. A near-twin of a prompt that measures, used or not, is in no other set.

    Args:
        data: folder of `heldout_prompts.jsonl`: held-out text, and some of what the targets were trained on.
        prompts: folder of `q_TASK.jsonl`.
        train, develop, limit: at most so many prompts of each kind.
    """
    file = data / "heldout_prompts.jsonl"
    lines = load_prompts(file)
    sources = [json.loads(row).get("source") for row in read_lines(file) if row.strip()]
    twins = near_twins_of([line.text for line in lines], measuring(prompts))
    found = [(line, source) for i, (line, source) in enumerate(zip(lines, sources, strict=True)) if i not in twins]
    cut = len(found) - max(1, len(found) // 4)
    sets = {TRAIN: [line for line, _ in found[:cut]][:train]}
    for kind, names in SOURCES.items():
        sets[f"develop-{kind}"] = [line for line, source in found[cut:] if source in names][:develop]
    for task in TASKS:
        sets[task] = load_prompts(prompts / f"q_{task}.jsonl", limit=limit)
    return sets


def fitting(lines: Sequence[PromptLine], tokenizer: Any, *, new_tokens: int, max_length: int) -> list[list[int]]:
    """Token ids of the prompts that leave room for the new tokens."""
    texts = [encode_prompt(line, tokenizer) for line in lines]
    return [text for text in texts if len(text) + new_tokens <= max_length]


def rounds_of(folder: Path, name: str, temperature: float, nodes: int = TREE.total_tokens) -> RoundDataset:
    """What all shares recorded of a set. FileNotFoundError if there is nothing."""
    files = sorted(folder.glob(f"{stem(name, temperature, nodes)}_*"))
    if not files:
        raise FileNotFoundError(f"no rounds of {stem(name, temperature, nodes)} in {folder}: record them first")
    return read_rounds(files)


def files_of(folder: Path, name: str, temperature: float, share: str) -> dict[int, Path]:
    """Where a process writes a set, by nodes: every node count, but for the training prompts."""
    nodes = (TREE.total_tokens,) if name == TRAIN else NODES
    return {count: folder / f"{stem(name, temperature, count)}_{share}" for count in nodes}


def stem(name: str, temperature: float, nodes: int) -> str:
    """How the names of a set's files begin."""
    return f"{name}_T{temperature:g}_{nodes}"
