"""The measuring prompts' recorded rounds under every method: what each would take, at the costs of a large model.

`python -m bench.replayed --rounds ROUNDS --train ROUNDS --costs COSTS --methods METHODS.json --pair llama --out RUNS`,
with recordings of `radar record --every-token`, of one temperature, and a cost table of `radar profile`. Rules of the
literature are fitted and tuned on `--train`, beside what METHODS.json holds for `bench.released` to decode; the best
fixed setting of each task in hindsight and the oracles see the measuring rounds themselves. RUNS are lines as
`bench.runs` tells, without texts. With `--own 20 64` in place of `--train`, ROUNDS are of the wide pair itself, of 20
prompts a task: METHODS.json's methods alone, as far as decoding went that wrote 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.released import policy_of
from bench.tables import OWN, TASKS
from radar.policy.base import StopPolicy
from radar.replay.ends import Ends
from radar.replay.evaluate import oracle_ends
from radar.replay.recording import read_rounds
from radar.replay.replay import costs_for, ends_of, played, tune_fixed
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.contenders import tuned_contenders

__all__ = ["as_decoded", "of_ends", "oracles", "replayed", "tuned_rules"]

PER_TASK = 80  # measuring prompts; they are recorded task after task
SOURCES = {  # of `radar.train.contenders`, by the names that runs have
    "expected extra token": "expected_gain", "DDD": "ddd", "TALON": "talon", "OPT-Tree": "opt_tree",
    "GammaTune": "gammatune", "SpecDec++ head": "specdec", "LTD's MLP": "ltd",
}  # fmt: skip


def of_ends(
    ends: Ends, data: RoundDataset, costs: CostTable, accept: torch.Tensor | None = None
) -> Iterator[dict[str, Any]]:
    """By prompt, what rounds with these ends come to."""
    made, tokens, seconds = played(ends, data, costs, accept)
    columns = {"tokens": tokens, "seconds": seconds, "rounds": made.double(), "calls": ends.calls * made}
    columns["drafted"] = (ends.nodes_of(data) - 1) * made
    prompts, row = torch.unique(data.prompt, return_inverse=True)
    sums = {name: torch.zeros(len(prompts), dtype=torch.float64) for name in columns}
    for name, column in columns.items():
        sums[name].index_add_(0, row, column.double())
    for place, number in enumerate(prompts.tolist()):
        task, prompt = list(TASKS)[number // PER_TASK], number % PER_TASK
        yield {"task": task, "prompt": prompt} | {name: round(sums[name][place].item(), 9) for name in sums}


def replayed(policy: StopPolicy, data: RoundDataset, costs: CostTable) -> Iterator[dict[str, Any]]:
    """By prompt, what rounds under a policy come to."""
    return of_ends(ends_of(policy, data), data, costs_for(policy, costs))


def oracles(data: RoundDataset, costs: CostTable) -> Iterator[dict[str, Any]]:
    """Bounds, and the best fixed setting of each task: they have seen what they are judged by."""
    free = costs.without_decisions()
    tables = {"hindsight": data.accepted_by_nodes}
    if data.header.temperature > 0:
        tables["knowing"] = data.expected_by_nodes
    for method, table in tables.items():
        assert table is not None
        for run in of_ends(oracle_ends(data, free, table.float()), data, free, table.float()):
            yield {"method": method} | run
    for number, _ in enumerate(TASKS):
        own = data.select(data.prompt // PER_TASK == number)
        for run in replayed(tune_fixed(own, costs).policy, own, costs):
            yield {"method": "best_fixed_hindsight"} | run


def as_decoded(data: RoundDataset, per_task: int, tokens: int) -> RoundDataset:
    """The rounds that decoding of so many tokens can make; the first token is made by the prompt's pass."""
    begins = torch.full((int(data.prompt.max()) + 1,), 2**62).scatter_reduce(0, data.prompt, data.position, "amin")
    kept = data.select(data.position - begins[data.prompt] < tokens - 1)
    return replace(kept, prompt=kept.prompt // per_task * PER_TASK + kept.prompt % per_task, prompts={})


def tuned_rules(train: RoundDataset, costs: CostTable, *, epochs: int) -> dict[str, StopPolicy]:
    """The rules of the literature, fitted on 70 % of the training rounds' prompts and tuned on the rest."""
    fitted, chosen = train.split_by_prompt(0.3)
    found = tuned_contenders(fitted, chosen, costs, epochs=epochs)
    return {short: found[name].policy for name, short in SOURCES.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("rounds", "costs", "methods", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--train", type=Path)
    judged.add_argument("--own", type=int, nargs=2, metavar=("PROMPTS", "TOKENS"))
    parser.add_argument("--pair", required=True)
    parser.add_argument("--epochs", type=int, default=40, help="of the networks among the rules")
    args = parser.parse_args(argv)
    data, costs = read_rounds(args.rounds), CostTable.load(args.costs, device=None)
    temperature = data.header.temperature
    methods = json.loads(args.methods.read_text(encoding="utf8"))
    told: Mapping[str, Any] = methods.get("methods", methods)[args.pair][f"{temperature:g}"]
    beams = data.header.tree.tree_top_k
    policies = {
        name: policy_of(one, args.methods.parent) for name, one in told.items() if one.get("beams", 10) == beams
    }
    of = {"pair": args.pair, "temperature": temperature}
    if args.own:
        data, of["pair"] = as_decoded(data, *args.own), args.pair + OWN
    else:
        policies |= tuned_rules(read_rounds(args.train), costs, epochs=args.epochs)
    with args.out.open("a", encoding="utf8") as sink:
        for name, policy in policies.items():
            for run in replayed(policy, data, costs):
                if args.own:  # the last round may have had more
                    run["tokens"] = min(run["tokens"], args.own[1] - 1)
                sink.write(json.dumps(of | {"method": name} | run) + "\n")
        for run in () if args.own else oracles(data, costs):
            sink.write(json.dumps(of | run) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
