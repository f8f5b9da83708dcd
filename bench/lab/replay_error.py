"""Does replay say what decoding does? The small pair decodes the tasks' prompts, and both are priced by one cost table.

`python -m bench.lab.replay_error --pair .lab/pairs/llama --work .lab/end_to_end/llama --prompts DIR --out FILE` after
the stages `record`, `costs` and `policies` of `bench.end_to_end` at temperature 0, with its `--limit` or a lower one.
Decodes in float32: of rounds that were recorded in float32 both see the same text, and replay is decoding, but for a
draft that goes beyond an end token. Rounds recorded on a GPU are of a 16-bit text, which may part.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.command import command_line
from bench.lab.pairs import load_pair
from bench.lab.policies import EAGLE3, FIXED, RADAR, THRESHOLD, Choice, setting
from bench.lab.record_pair import TASKS, TREE, fitting, rounds_of
from radar import RadarDecoder, TreeConfig
from radar.compare import describe_machine
from radar.policy.base import StopPolicy
from radar.prompts import load_prompts
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset
from radar.train.replay import replay

METHODS = (EAGLE3, FIXED, THRESHOLD, RADAR)  # the published policy draws its actions: no two runs are the same


def decode(
    decoder: RadarDecoder, texts: list[list[int]], costs: CostTable, tree: TreeConfig, new_tokens: int
) -> dict[str, float]:
    """Tokens per second, draft calls and acceptance length of real rounds under the cost table."""
    tokens = seconds = calls = rounds = 0.0
    for text in texts:
        made, known, end = [], 0, None
        for item in decoder.rounds(text, max_new_tokens=new_tokens):
            if not item.is_prefill:
                made.append((known, item))
            known, end = known + len(item.tokens), item.finish_reason
        for start, item in made:
            # as in recording: left out is what the limit cut short, and what could have gone on beyond it
            if end != "length" or (item.finish_reason is None and known - start >= TREE.max_calls):
                context = torch.tensor(len(text) + start)
                spent = costs.round_seconds(torch.tensor(item.num_draft_calls), context, tree)
                tokens, seconds = tokens + len(item.tokens), seconds + float(spent)
                calls, rounds = calls + item.num_draft_calls, rounds + 1
    return {
        "tokens_per_second": tokens / seconds,
        "draft_calls": calls / rounds,
        "mean_acceptance_length": tokens / rounds,
    }


def compare(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By task and method: replay, decoding, and the error of the first."""
    small = load_pair(args.pair, torch.device("cpu"), torch.float32)
    folder, costs = args.work / "T0", CostTable.load(args.work / "costs.json", device=None)
    choice = Choice.load(folder / "choice.json")
    decoders: dict[TreeConfig, RadarDecoder] = {}
    found: dict[str, dict[str, Any]] = {}
    bar = tqdm(total=len(TASKS) * len(METHODS), unit="set")
    for task in TASKS:
        lines = load_prompts(args.prompts / f"q_{task}.jsonl", limit=args.limit)
        texts = fitting(lines, small.tokenizer, new_tokens=args.new_tokens, max_length=args.max_length)
        found[task] = {}
        for method in METHODS:
            tree, policy = setting(choice, folder, method, task)
            prices = costs.without_decisions() if method in (EAGLE3, FIXED) else costs
            own = replay(policy, _recorded(args, task, tree), costs)
            real = decode(
                _decoder(small, tree, policy, args.max_length, decoders), texts, prices, tree, args.new_tokens
            )
            found[task][method] = {
                "replay": {name: getattr(own, name) for name in ("draft_calls", "mean_acceptance_length")}
                | {"tokens_per_second": own.tokens_per_time},
                "decoding": real,
                "error": own.tokens_per_time / real["tokens_per_second"] - 1,
            }
            bar.update()
    return found


def _recorded(args: argparse.Namespace, task: str, tree: TreeConfig) -> RoundDataset:
    """The rounds of the prompts that are decoded."""
    return rounds_of(args.work / "rounds", task, 0.0, tree.total_tokens, prompts=args.limit)


def _decoder(
    small: Any, tree: TreeConfig, policy: StopPolicy, max_length: int, made: dict[TreeConfig, RadarDecoder]
) -> RadarDecoder:
    if tree not in made:
        made[tree] = RadarDecoder(
            small.model, draft=small.draft, tokenizer=small.tokenizer, policy=policy, tree=tree, max_length=max_length,
            fallback=False,
        )  # fmt: skip
    made[tree].policy = policy
    return made[tree]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="of this pair: rounds, costs.json and T0")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20, help="prompts of every task, of those recorded")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = compare(args)
    errors = [abs(one["error"]) for methods in found.values() for one in methods.values()]
    report = {
        "command": command_line("bench.lab.replay_error", argv),
        "machine": describe_machine(torch.device("cpu")),
        "largest_error": max(errors),
        "mean_error": sum(errors) / len(errors),
        "tasks": found,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "tasks"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
