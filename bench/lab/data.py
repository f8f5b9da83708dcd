"""Build the corpus of the pairs that are trained here: `python -m bench.lab.data --data FOLDER --prompts FOLDER`.

The first folder holds `gsm8k_train.jsonl` (MIT), `mbpp.jsonl` (CC BY 4.0; task ids 511 to 600 are a benchmark and stay
out) and `codegen.json`, `roleplay.json`, `toolformer.json` (MIT); the second the prompts that measure, `q_TASK.jsonl`,
whose near-twins stay out as well. Python text comes from the interpreter: its standard library (PSF), sympy, networkx,
numpy and torch (BSD-3). Laboratory models, which are not given away, may read more packages: `--packages transformers`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.lab.python_text import PACKAGES, python_files
from bench.lab.tokenizer import chat, encode, plain, save_tokenizer, train_tokenizer
from bench.tables import TASKS
from radar.tools.prompts import load_prompts
from radar.tools.twins import near_twins_of

Pair = tuple[str, str, str]  # source, question, answer


def _clean(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ").strip()


def read_pairs(folder: Path, prompts: Path, tool_use: int) -> list[Pair]:
    """Questions and answers of every source, but for near-twins of what measures.

    Of the tool-use set only `tool_use` pairs, without their long preamble.
    """
    pairs: list[Pair] = []
    for line in (folder / "gsm8k_train.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs.append(("gsm8k", row["question"], row["answer"]))
    for line in (folder / "mbpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not 511 <= row["task_id"] <= 600:
            pairs.append(("mbpp", row["text"], row["code"]))
    for name in ("codegen", "roleplay", "toolformer"):
        rows = json.loads((folder / f"{name}.json").read_text())
        if name == "toolformer":
            random.Random(2).shuffle(rows)
            rows = rows[:tool_use]
        for row in rows:
            question = row["instruction"].strip().splitlines()[-1] if name == "toolformer" else row["instruction"]
            pairs.append((name, question + ("\n" + row["input"] if row.get("input") else ""), row["response"]))
    cleaned = [(source, _clean(question), _clean(answer)) for source, question, answer in pairs]
    cleaned = [pair for pair in cleaned if pair[1] and pair[2]]
    measuring = [line.text for task in TASKS for line in load_prompts(prompts / f"q_{task}.jsonl")]
    twins = near_twins_of([question for _, question, _ in cleaned], measuring)
    print(f"{len(twins)} of {len(cleaned)} questions are near-twins of prompts that measure: left out", flush=True)
    return [pair for number, pair in enumerate(cleaned) if number not in twins]


def documents(pairs: Iterable[Pair], seed: int) -> list[str]:
    """Chat form of every pair, and plain forms of arithmetic and code, so that bare prompts are continued as well."""
    rng, out = random.Random(seed), []
    for source, question, answer in pairs:
        out.append(chat(question, answer))
        if source == "gsm8k" and rng.random() < 0.5:
            out.append(plain(f"{question}\n{answer}"))
        if source == "mbpp":
            comment = question.replace("\n", "\n# ")
            out += [chat(question, answer), plain(f"# {comment}\n{answer}"), plain(f'"""{question}"""\n{answer}')]
            out += [plain(answer)]
    rng.shuffle(out)
    return out


def heldout_prompts(held: list[Pair], train: list[Pair]) -> list[dict[str, Any]]:
    """What policies may learn from: held-out questions, and some that the target has read."""
    rng = random.Random(5)
    pairs = held + rng.sample(train, min(len(train), 450))
    rows: list[dict[str, Any]] = [{"prompt": pair[1], "chat": True, "source": pair[0]} for pair in pairs]
    rng.shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the instruction files")
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the prompts that measure")
    parser.add_argument("--out", type=Path, default=Path(".lab/data"))
    parser.add_argument("--python-tokens", type=int, default=17_000_000)
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), help="what is not installed is left out")
    parser.add_argument("--tool-use", type=int, default=800)
    parser.add_argument("--vocab", type=int, default=4096, help="size of the tokenizer; at most 65536")
    args = parser.parse_args()

    pairs = read_pairs(args.data, args.prompts, args.tool_use)
    random.Random(1).shuffle(pairs)
    held, train = pairs[: len(pairs) // 20], pairs[len(pairs) // 20 :]
    files = python_files(3, args.packages)
    held_files = set(range(0, len(files), max(1, len(files) // 320)))
    modules = [text for number, text in enumerate(files) if number in held_files]
    files = [text for number, text in enumerate(files) if number not in held_files]
    instruct = documents(train, 4)
    tokenizer = train_tokenizer(iter([*random.Random(6).sample(files, min(len(files), 1500)), *instruct]), args.vocab)
    args.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, args.out / "tokenizer")
    streams = {
        "instruct": encode(tokenizer, instruct),
        "instruct_val": encode(tokenizer, [chat(pair[1], pair[2]) for pair in held]),
        "python": encode(tokenizer, [plain(text) for text in files], args.python_tokens),
        "python_val": encode(tokenizer, [plain(text) for text in modules], 400_000),
    }
    for name, stream in streams.items():
        np.save(args.out / f"{name}.npy", stream)
    rows = heldout_prompts(held, train)
    (args.out / "heldout_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(json.dumps({name: len(stream) for name, stream in streams.items()} | {"heldout_prompts": len(rows)}))


if __name__ == "__main__":
    main()
