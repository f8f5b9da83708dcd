"""Six decoders on wide pairs at their real cost, on the paper's four tasks, from recorded rounds to the final table.

`python -m bench.end_to_end --pair llama=.lab/pairs/llama --pair vicuna=.lab/pairs/vicuna --data .lab/data --prompts DIR
--work .lab/end_to_end` on a GPU. Every stage keeps what it finished under `--work`, so that the same command goes on
where it was stopped or ran out of `--seconds` (exit status 3); `--stages` picks some of them:

check       the wide pair says what the small one says, in float32
record      rounds of the small pair, by several processes (`bench.lab.record`)
costs       what a round of the wide pair costs on this device
policies    train and tune on rounds of prompts that measure nothing, with those costs
replay      what the methods would reach on the tasks' rounds
measure     every method decodes every prompt in turn
generate    transformers' own generate on a few prompts
summary     `--out` and, beside it as .jsonl, every single run, of all pairs under `--work`
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.fit import EPOCHS
from bench.lab.recipes import RECIPES
from bench.lab.stages import STAGES, Comparison, OutOfTime
from bench.runs import read_runs
from bench.shapes import Geometry
from bench.summary import cost_errors, summarise
from radar.tools.costs import CostTable

OUT_OF_TIME = 3  # exit status: the same command goes on
OUT = Path(__file__).parent / "results" / "end_to_end" / "end_to_end_h200.json"
NEED_PROMPTS = {"check", "record", "measure", "generate"}


def summary(work: Path, command: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What lies under `work`: the result file, and every run. ValueError: nothing was measured."""
    runs: list[dict[str, Any]] = []
    generated, predicted, about = {}, {}, {}
    for folder in sorted(path for path in work.iterdir() if (path / "runs.jsonl").is_file()):
        name, own = folder.name, read_runs(folder / "runs.jsonl")
        runs += own
        if (generate := _read(folder / "generate.json")) is not None:
            generated[name] = generate
        files = {path.parent.name.removeprefix("T"): path for path in folder.glob("T*/replay.json")}
        predicted[name] = {temperature: _read(path) for temperature, path in files.items()}
        about[name] = {
            "check": _read(folder / "check.json"),
            "costs": _read(folder / "costs.json"),
            "machine": _read(folder / "machine.json"),
            "cost_errors": cost_errors(own, CostTable.load(folder / "costs.json", device=None)),
            "choices": {path.parent.name: _read(path) for path in folder.glob("T*/choice.json")},
        }
    if not runs:
        raise ValueError(f"no runs under {work}: the stage `measure` has written none yet")
    machine = next(iter(about.values()))["machine"]
    full = {"command": command, "machine": machine, **summarise(runs, generated, predicted)}
    return full | {"generate": generated, "replay": predicted, "pairs": about}, runs


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf8")) if file.is_file() else None


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", action="append", default=[], metavar="RECIPE=FOLDER", help="may be repeated")
    parser.add_argument("--data", type=Path, default=Path(".lab/data"), help="folder of heldout_prompts.jsonl")
    parser.add_argument("--prompts", type=Path, help="folder of the tasks' prompts, q_TASK.jsonl")
    parser.add_argument("--work", type=Path, default=Path(".lab/end_to_end"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, "summary"), default=[*STAGES, "summary"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--limit", type=int, default=20, help="prompts of every task")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--train", type=int, default=300, help="prompts that policies are trained on")
    parser.add_argument("--develop", type=int, default=16, help="prompts of every kind that settings are chosen on")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every policy")
    parser.add_argument("--cost-repeats", type=int, default=20)
    parser.add_argument("--generate-prompts", type=int, default=1, help="of every task, for transformers' generate")
    parser.add_argument("--workers", type=int, default=8, help="processes that record and train")
    parser.add_argument("--seconds", type=float, default=560.0, help="budget of this call")
    args = parser.parse_args(argv)
    if args.prompts is None and set(args.stages) & NEED_PROMPTS:
        parser.error("--prompts is needed: the folder of q_mt_bench.jsonl, q_gsm8k.jsonl, q_alpaca.jsonl, q_mbpp.jsonl")
    return args


def main(argv: list[str], geometries: dict[str, Geometry] | None = None) -> int:
    """`geometries` by recipe, for tests; None: those of the large models."""
    args = parse(argv)
    shapes = geometries or {name: recipe.geometry for name, recipe in RECIPES.items()}
    deadline, status = time.monotonic() + args.seconds, 0
    for given in args.pair:
        name, mark, folder = given.partition("=")
        if not mark or name not in shapes:
            raise ValueError(f"--pair takes RECIPE=FOLDER with a recipe of {', '.join(shapes)}, got {given!r}")
        try:
            Comparison(name, Path(folder), shapes[name], args, deadline).run(args.stages)
        except OutOfTime:
            print(f"{name}: out of time; the same command goes on", flush=True)
            status = OUT_OF_TIME
            break
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if "summary" in args.stages:
        full, runs = summary(args.work, command_line("bench.end_to_end", argv))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(full, indent=1) + "\n", encoding="utf8")
        lines = "".join(json.dumps(run) + "\n" for run in runs)
        args.out.with_suffix(".jsonl").write_text(lines, encoding="utf8")
        print(json.dumps(full["overall"], indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
