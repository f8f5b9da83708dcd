"""Train one laboratory pair within a budget: target, its own text, head, and what the head gets accepted.

`python -m bench.lab.train_pair llama --out .lab/pairs/llama` takes about eight minutes on a GPU. Writes
OUT/target, OUT/draft and OUT/pair.json. The stages are processes of their own, and what an earlier call finished is
kept: the same command goes on where the last one stopped. `--data` is what `bench.lab.data` made (for pairs of size
"lab" with `--vocab 16384 --python-tokens 99000000`, where there is that much Python).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.lab.make_default import log, stage
from bench.lab.recipes import RECIPES, SIZES, Recipe, Size
from bench.lab.record_pair import fitting
from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.metrics import merge
from radar.tools.machine import describe_machine
from radar.tools.prompts import load_prompts

__all__ = ["accepted"]

COMPILING = 60.0  # seconds that a stage may take for it, before its budget starts


def target_arguments(recipe: Recipe, size: Size) -> list[str]:
    shares = [str(share) for share in recipe.instruct_share]
    numbers = {
        "hidden": size.hidden, "intermediate": size.intermediate, "layers": size.layers, "heads": size.heads,
        "kv-heads": size.heads // recipe.group, "head-dim": size.head_dim, "batch": size.batch, "length": size.length,
        "seed": recipe.seed, "lr": size.learning_rate,
    }  # fmt: skip
    return [*_options(numbers), "--instruct-share", *shares]


def text_arguments(recipe: Recipe, size: Size) -> list[str]:
    numbers = {"batch": size.write_batch, "greedy-share": recipe.greedy_share, "seed": recipe.seed}
    return _options(numbers)


def head_arguments(recipe: Recipe, size: Size, vocabulary: int) -> list[str]:
    numbers = {
        "batch": size.draft_batch, "length": size.draft_length, "intermediate": size.draft_intermediate,
        "draft-vocab": min(size.draft_vocabulary, vocabulary), "seed": recipe.seed, "lr": size.draft_learning_rate,
        "checkpoint-every": 30,
    }  # fmt: skip
    taps = [] if size.layers >= 6 else ["--taps", "1,2,3"]  # EAGLE-3's default needs the layers
    return [*_options(numbers), *taps]


def accepted(pair: Path, prompts: Path, *, limit: int, new_tokens: int) -> dict[str, Any]:
    """Greedy decoding of held-out prompts with eight draft calls a round."""
    decoder = RadarDecoder.from_pretrained(
        pair / "target", pair / "draft", FixedDepth(8), tree=TreeConfig(), max_length=1024, compile=False,
        fallback=False,
    )  # fmt: skip
    lines = load_prompts(prompts, limit=limit)
    texts = fitting(lines, decoder.tokenizer, new_tokens=new_tokens, max_length=decoder.max_length)
    metrics = merge([decoder.generate(text, max_new_tokens=new_tokens).metrics for text in texts])
    return {
        "prompts": len(texts),
        "rounds": metrics.num_spec_steps,
        "mean_acceptance_length": metrics.mean_acceptance_length,
        "acceptance_histogram": metrics.acceptance_histogram,
    }


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="lab")
    parser.add_argument("--target-seconds", type=float, default=240.0)
    parser.add_argument("--text-seconds", type=float, default=40.0)
    parser.add_argument("--head-seconds", type=float, default=110.0)
    parser.add_argument("--limit", type=int, default=40, help="held-out prompts that the head is judged on")
    args = parser.parse_args(argv)
    recipe, size = RECIPES[args.recipe], SIZES[args.size]
    args.out.mkdir(parents=True, exist_ok=True)
    target, text, draft = args.out / "target", args.out / "text.npy", args.out / "draft"
    data = ["--data", str(args.data)]
    smoke = args.size == "smoke"
    begun = time.monotonic()
    with (args.out / "log.txt").open("a", encoding="utf8") as sink:
        if not target.with_suffix(".json").is_file():
            words = [*data, "--out", str(target), "--seconds", str(args.target_seconds)]
            if not stage(sink, "train_target", words + target_arguments(recipe, size), args.target_seconds + COMPILING):
                return 1
        vocabulary = int(json.loads((target / "config.json").read_text())["vocab_size"])
        if not text.is_file():
            words = [*data, "--target", str(target), "--out", str(text), "--seconds", str(args.text_seconds)]
            words += ["--new-tokens", "24"] if smoke else []
            if not stage(sink, "on_policy", words + text_arguments(recipe, size), args.text_seconds):
                return 1
        if not draft.with_suffix(".json").is_file():
            words = [*data, "--target", str(target), "--on-policy", str(text), "--out", str(draft)]
            words += ["--seconds", str(args.head_seconds), *head_arguments(recipe, size, vocabulary)]
            if not stage(sink, "train_head", words, args.head_seconds + COMPILING):
                return 1
        held_out = args.data / "heldout_prompts.jsonl"
        found = accepted(args.out, held_out, limit=args.limit, new_tokens=32 if smoke else 128)
        record = {
            "recipe": args.recipe,
            "size": args.size,
            "machine": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "target": json.loads(target.with_suffix(".json").read_text()),
            "draft": json.loads(draft.with_suffix(".json").read_text()),
            "held_out_fixed_8": found,
            "seconds_of_this_call": round(time.monotonic() - begun, 1),
        }
        (args.out / "pair.json").write_text(json.dumps(record, indent=1) + "\n")
        log(sink, json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
