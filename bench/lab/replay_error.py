"""Does replay say what decoding does? A pair decodes the tasks' prompts, and its recorded rounds are replayed.

`python -m bench.lab.replay_error --pair .lab/pairs/llama --work .lab/end_to_end/llama --prompts DIR --out FILE` after
the stages `record`, `costs` and `policies` of `bench.end_to_end` at temperature 0, with its `--limit` or a lower one.
Both are priced by the pair's cost table. The small pair decodes in float32: of rounds that were recorded in float32
both see the same text, and replay is decoding, but for a draft that goes beyond an end token.

`--wide llama` decodes with the pair widened, on a GPU, and records rounds of that (WORK/rounds_wide): then the clock is
asked too. Its 16-bit texts may part where a round verifies another number of rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.command import command_line
from bench.lab.pairs import Wide, load_pair
from bench.lab.policies import EAGLE3, FIXED, RADAR, THRESHOLD, Choice, setting
from bench.lab.recipes import RECIPES
from bench.lab.record_pair import TASKS, TREE, fitting, rounds_of, stem
from bench.shapes import Geometry
from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.policy.base import StopPolicy
from radar.tools.machine import describe_machine
from radar.tools.prompts import load_prompts
from radar.train.costs import CostTable
from radar.train.drafted import FullRounds
from radar.train.record import record
from radar.train.replay import replay

METHODS = (EAGLE3, FIXED, THRESHOLD, RADAR)  # the published policy draws its actions: no two runs are the same


def decode(
    decoder: RadarDecoder, texts: list[list[int]], costs: CostTable, tree: TreeConfig, new_tokens: int
) -> dict[str, float]:
    """Tokens per second, draft calls and acceptance length of real rounds under the cost table, and by the clock."""
    tokens = seconds = clock = calls = rounds = 0.0
    for text in texts:
        made, known, end = [], 0, None
        for item in decoder.rounds(text, max_new_tokens=new_tokens):
            if not item.is_prefill:
                made.append((known, item))
            known, end = known + len(item.tokens), item.finish_reason
        for start, item in made:
            # as in recording: left out are rounds that begin where the limit leaves less than the deepest may gain
            if end != "length" or known - start >= TREE.max_calls:
                context = torch.tensor(len(text) + start)
                spent = costs.round_seconds(torch.tensor(item.num_draft_calls), context, tree)
                gained = len(item.tokens) if end != "length" else item.accept_length + 1  # the limit cuts the last
                tokens, seconds = tokens + gained, seconds + float(spent)
                calls, rounds = calls + item.num_draft_calls, rounds + 1
                clock += sum(item.seconds.values())
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_by_the_clock": tokens / clock,
        "draft_calls": calls / rounds,
        "mean_acceptance_length": tokens / rounds,
    }


class Small:
    """The pair as it was trained, in float32 on a CPU, and the rounds that `bench.end_to_end` recorded of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.pair = load_pair(args.pair, torch.device("cpu"), torch.float32)
        self.tokenizer, self.max_length, self.rounds = self.pair.tokenizer, args.max_length, args.work / "rounds"
        self._made: dict[TreeConfig, RadarDecoder] = {}

    def decoder(self, tree: TreeConfig, policy: StopPolicy) -> RadarDecoder:
        if tree not in self._made:
            self._made[tree] = RadarDecoder(
                self.pair.model, draft=self.pair.draft, tokenizer=self.tokenizer, policy=policy, tree=tree,
                max_length=self.max_length, fallback=False,
            )  # fmt: skip
        self._made[tree].policy = policy
        return self._made[tree]

    def prepare(self, task: str, texts: list[list[int]], nodes: set[int], new_tokens: int) -> None:
        """The rounds are there."""


class Widened:
    """The pair at its real cost, and rounds of it that are recorded here."""

    def __init__(self, args: argparse.Namespace, geometry: Geometry) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.wide = Wide(args.pair, geometry, device=device, max_length=args.max_length)
        self.tokenizer, self.rounds = self.wide.tokenizer, args.work / "rounds_wide"
        self.rounds.mkdir(parents=True, exist_ok=True)

    def decoder(self, tree: TreeConfig, policy: StopPolicy) -> RadarDecoder:
        decoder = self.wide.decoder(tree, policy)
        decoder.policy = policy
        return decoder

    @cached_property
    def _sources(self) -> list[FullRounds]:
        pair = self.wide.pair
        source = RadarDecoder(
            pair.model, draft=pair.draft, tokenizer=self.tokenizer, policy=FixedDepth(1), tree=TREE,
            max_length=self.wide.max_length, engine="eager", fallback=False,
        )  # fmt: skip
        return [FullRounds(source, 0.0, every_token=True)]

    def prepare(self, task: str, texts: list[list[int]], nodes: set[int], new_tokens: int) -> None:
        files = {count: self.rounds / f"{stem(task, 0.0, count)}_0-of-1.jsonl" for count in sorted(nodes)}
        (source,) = self._sources
        record(
            source.decoder, texts, files, max_new_tokens=new_tokens, every_token=True, progress=False,
            sources=self._sources,
        )  # fmt: skip


def compare(args: argparse.Namespace, geometry: Geometry | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Task by task, by method: replay, decoding, and the error of the first. `geometry`: to widen to."""
    pair: Small | Widened = Small(args) if geometry is None else Widened(args, geometry)
    folder, costs = args.work / "T0", CostTable.load(args.work / "costs.json", device=None)
    choice = Choice.load(folder / "choice.json")
    bar = tqdm(total=len(TASKS) * len(METHODS), unit="set")
    for task in TASKS:
        lines = load_prompts(args.prompts / f"q_{task}.jsonl", limit=args.limit)
        texts = fitting(lines, pair.tokenizer, new_tokens=args.new_tokens, max_length=args.max_length)
        chosen = {method: setting(choice, folder, method, task) for method in METHODS}
        pair.prepare(task, texts, {tree.total_tokens for tree, _ in chosen.values()}, args.new_tokens)
        found: dict[str, Any] = {}
        for method, (tree, policy) in chosen.items():
            prices = costs.without_decisions() if method in (EAGLE3, FIXED) else costs
            own = replay(policy, rounds_of(pair.rounds, task, 0.0, tree.total_tokens, prompts=args.limit), costs)
            decoder = pair.decoder(tree, policy)
            decoder.generate(texts[0], max_new_tokens=4)  # what compiles and captures is not timed
            real = decode(decoder, texts, prices, tree, args.new_tokens)
            found[method] = {
                "replay": {name: getattr(own, name) for name in ("draft_calls", "mean_acceptance_length")}
                | {"tokens_per_second": own.tokens_per_time},
                "decoding": real,
                "error": own.tokens_per_time / real["tokens_per_second"] - 1,
                "error_by_the_clock": own.tokens_per_time / real["tokens_per_second_by_the_clock"] - 1,
            }
            bar.update()
        yield task, found


def main(argv: list[str], geometries: dict[str, Geometry] | None = None) -> int:
    """`geometries` by recipe, for tests; None: those of the large models."""
    shapes = geometries or {name: recipe.geometry for name, recipe in RECIPES.items()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="of this pair: rounds, costs.json and T0")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20, help="prompts of every task, of those recorded")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--wide", choices=sorted(shapes), help="the recipe whose large model the pair is widened to")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {
        "command": command_line("bench.lab.replay_error", argv),
        "machine": describe_machine(torch.device("cuda" if args.wide and torch.cuda.is_available() else "cpu")),
        "tasks": {},
    }
    for task, found in compare(args, shapes[args.wide] if args.wide else None):
        report["tasks"][task] = found
        every = [one for methods in report["tasks"].values() for one in methods.values()]
        errors = [abs(one["error"]) for one in every]
        report |= {"largest_error": max(errors), "mean_error": sum(errors) / len(errors)}
        if args.wide:
            report["largest_error_by_the_clock"] = max(abs(one["error_by_the_clock"]) for one in every)
        args.out.write_text(json.dumps(report, indent=1) + "\n")  # a run that is cut short leaves what it has
    print(json.dumps({name: value for name, value in report.items() if name != "tasks"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
