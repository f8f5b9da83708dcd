"""Record rounds of a small pair on sets of prompts: `python -m bench.lab.record_pair --pair .lab/pairs/llama ...`.

The wide pair makes the same rounds, so the cheap ones serve to train its policies and to replay them. Several processes
share the work with `--share 0/8`, `--share 1/8`, ...; each writes its own files, and the same command goes on where an
earlier one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.lab.pairs import load_pair
from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.tools.prompts import PromptLine, encode_prompt, load_prompts, read_lines
from radar.train.dataset import RoundDataset, read_rounds
from radar.train.drafted import FullRounds
from radar.train.record import LANES, record
from radar.train.rounds import concatenate

__all__ = ["NEAREST", "NODES", "SOURCES", "TASKS", "TREE", "develop_set", "fitting", "prompt_sets", "rounds_of", "stem"]

TASKS = ("mt_bench", "gsm8k", "alpaca", "mbpp")
NEAREST = {"mt_bench": "chat", "gsm8k": "gsm8k", "alpaca": "chat", "mbpp": "mbpp"}  # development prompts of a task
SOURCES = {"chat": ("codegen", "roleplay", "toolformer"), "gsm8k": ("gsm8k",), "mbpp": ("mbpp",)}
NODES = (32, 60, 100)  # of the grid that the best fixed setting is chosen from
TRAIN = "train"  # the set that networks learn from
TREE = TreeConfig()
STEP = 16  # prompts between two looks at the clock


def prompt_sets(data: Path, prompts: Path, *, train: int, develop: int, limit: int) -> dict[str, list[PromptLine]]:
    """Prompts by set: `train`, `develop-KIND`, and the tasks themselves, which measure and nothing else.

    Args:
        data: folder of `heldout_prompts.jsonl`: held-out text, and some of what the targets were trained on.
        prompts: folder of `q_TASK.jsonl`.
        train, develop, limit: at most so many prompts of each kind.

    Raises:
        ValueError: a prompt that measures is among the others.
    """
    file = data / "heldout_prompts.jsonl"
    lines = load_prompts(file)
    sources = [json.loads(row).get("source") for row in read_lines(file) if row.strip()]
    cut = len(lines) - max(1, len(lines) // 4)

    def of(names: Sequence[str], start: int, stop: int) -> list[PromptLine]:
        """Raw text of modules, which is held out too, is no kind of prompt: nobody asks for its continuation."""
        found = zip(lines[start:stop], sources[start:stop], strict=True)
        return [line for line, source in found if source in (None, *names)]

    sets = {TRAIN: of([name for names in SOURCES.values() for name in names], 0, cut)[:train]}
    for kind, names in SOURCES.items():
        sets[f"develop-{kind}"] = of(names, cut, len(lines))[:develop]
    for task in TASKS:
        sets[task] = load_prompts(prompts / f"q_{task}.jsonl", limit=limit)
    measuring = {line.text.strip() for task in TASKS for line in load_prompts(prompts / f"q_{task}.jsonl")}
    if leaked := [line.text for line in lines if line.text.strip() in measuring]:
        raise ValueError(
            f"{file} holds {len(leaked)} prompts that measure, the first is {leaked[0][:60]!r}: make it anew"
        )
    return sets


def rounds_of(
    folder: Path, name: str, temperature: float, nodes: int = TREE.total_tokens, *, prompts: int | None = None
) -> RoundDataset:
    """What all shares recorded of a set, or of its first `prompts` prompts. FileNotFoundError if there is nothing."""
    files = sorted(folder.glob(f"{stem(name, temperature, nodes)}_*.jsonl"))
    files = [file for file in files if b'"scores"' in file.read_bytes()]  # few short texts can leave a share no round
    if not files:
        raise FileNotFoundError(f"no rounds of {stem(name, temperature, nodes)} in {folder}: record them first")
    if prompts is None:
        return read_rounds(files)
    parts = []
    for file in files:
        index, count = map(int, file.stem.rpartition("_")[2].split("-of-"))
        part = read_rounds(file)
        part = replace(part, prompt=part.prompt * count + index)  # the number in the set
        parts.append(part.select(part.prompt < prompts))
    return concatenate([part for part in parts if len(part)])


def develop_set(task: str) -> str:
    """The set of development prompts that are nearest to a task."""
    return f"develop-{NEAREST[task]}"


def stem(name: str, temperature: float, nodes: int) -> str:
    """How the names of a set's files begin."""
    return f"{name}_T{temperature:g}_{nodes}"


def fitting(lines: Sequence[PromptLine], tokenizer: Any, *, new_tokens: int, max_length: int) -> list[list[int]]:
    """Token ids of the prompts that leave room for the new tokens."""
    texts = [encode_prompt(line, tokenizer) for line in lines]
    return [text for text in texts if len(text) + new_tokens <= max_length]


def files_of(folder: Path, name: str, temperature: float, share: str) -> dict[int, Path]:
    """Where a process writes a set, by nodes: every node count, but for the training prompts."""
    nodes = (TREE.total_tokens,) if name == TRAIN else NODES
    return {count: folder / f"{stem(name, temperature, count)}_{share}.jsonl" for count in nodes}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of heldout_prompts.jsonl")
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the tasks' prompts, q_TASK.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rounds")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--train", type=int, default=300, help="training prompts")
    parser.add_argument("--develop", type=int, default=16, help="development prompts of every kind")
    parser.add_argument("--limit", type=int, default=40, help="measuring prompts of every task")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--share", default="0/1", help="this process and how many there are")
    parser.add_argument("--seconds", type=float, default=500.0)
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds
    index, count = (int(part) for part in args.share.split("/"))
    if not 0 <= index < count:
        parser.error(f"--share takes I/N with I below N, got {args.share}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = load_pair(args.pair, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    sets = prompt_sets(args.data, args.prompts, train=args.train, develop=args.develop, limit=args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    room = 1024
    decoder = RadarDecoder(
        small.model, draft=small.draft, tokenizer=small.tokenizer, policy=FixedDepth(8), max_length=room, tree=TREE,
        engine="eager", fallback=False,
    )  # fmt: skip
    lanes = LANES if device.type == "cuda" else 1
    sources: dict[tuple[float, bool], list[FullRounds]] = {}
    for temperature, (name, lines) in product(args.temperatures, sets.items()):
        texts = fitting(lines, small.tokenizer, new_tokens=args.new_tokens, max_length=room)[index::count]
        out = files_of(args.out, name, temperature, f"{index}-of-{count}")
        every = name != TRAIN  # what judges is replayed as it would be decoded
        shares = {file.stem.rpartition("-of-")[2] for file in args.out.glob(f"{name}_T{temperature:g}_*")}
        if shares - {str(count)}:
            raise ValueError(
                f"{args.out} was begun with another number of shares than {count}: use that, or a new folder"
            )
        if (temperature, every) not in sources:
            made = [FullRounds(decoder, temperature, every_token=every) for _ in range(lanes)]
            sources = {(temperature, every): made}  # the sets stand in this order: the others are done with
        for done in range(STEP, len(texts) + STEP, STEP):
            if time.monotonic() > deadline:
                print(f"share {args.share}: out of time in {name}, temperature {temperature:g}", flush=True)
                return 3
            record(
                decoder, texts[:done], out, max_new_tokens=args.new_tokens, temperature=temperature, seed=index,
                every_token=every, progress=False, sources=sources[temperature, every],
            )  # fmt: skip
    print(f"share {args.share}: all recorded", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
