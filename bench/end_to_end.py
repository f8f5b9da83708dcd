"""Six decoders on wide pairs at their real cost, on the paper's four tasks, from recorded rounds to the final table.

`python -m bench.end_to_end --pair llama=.lab/pairs/llama --pair vicuna=.lab/pairs/vicuna --data .lab/data --prompts DIR
--work .lab/end_to_end` on a GPU. Every stage keeps what it finished under `--work`, so that the same command goes on
where it was stopped or ran out of `--seconds` (exit status 3); `--stages` picks some of them:

check       the wide pair says what the small one says: in float32, and in the type that is measured
record      rounds of the small pair, by several processes (`bench.lab.record_pair`)
costs       what a round of the wide pair costs on this device
policies    train and tune on rounds of prompts that measure nothing, with those costs
replay      what the methods and the oracle would reach on the tasks' rounds
measure     every method decodes every prompt in turn; plain decoding, whose speed no text changes, once
generate    transformers' own generate on a few prompts
summary     bench/results/end_to_end_full.json and the flat end_to_end.json, of all pairs under `--work`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.check import check
from bench.lab.pairs import Wide, load_pair, measure_costs
from bench.lab.policies import EPOCHS, METHODS, Choice, choose_policies, predict, setting
from bench.lab.recipes import RECIPES
from bench.lab.record_pair import NODES, TASKS, TREE, fitting
from bench.lab.speed import AUTOREGRESSIVE, cost_errors, flat, summarise
from bench.lab.widen import widen
from bench.shapes import Geometry
from radar import SamplingParams, TreeConfig
from radar.generation.base import GenerationOutput
from radar.policy.base import StopPolicy
from radar.target.load import load_tokenizer
from radar.tools.machine import describe_machine, device_name
from radar.tools.prompts import load_prompts
from radar.train.costs import CostTable

STAGES = ("check", "record", "costs", "policies", "replay", "measure", "generate", "summary")
OUT_OF_TIME = 3
RESULTS = Path(__file__).parent / "results"


class OutOfTime(Exception):
    """The budget is spent; what is done is on disk."""


class Comparison:
    """One pair's stages.

    Args:
        name: of the pair.
        folder: of the small pair: `target` and `draft`.
        geometry: to widen to.
        args: of the command line.
        deadline: on the monotonic clock.
    """

    def __init__(self, name: str, folder: Path, geometry: Geometry, args: argparse.Namespace, deadline: float) -> None:
        self.name, self.folder, self.geometry, self.args, self.deadline = name, folder, geometry, args, deadline
        self.work: Path = args.work / name
        self.rounds = self.work / "rounds"
        self.work.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policies: dict[tuple[str, str, str], tuple[TreeConfig, StopPolicy]] = {}

    @cached_property
    def wide(self) -> Wide:
        begun = time.monotonic()
        wide = Wide(self.folder, self.geometry, device=self.device, max_length=self.args.max_length)
        print(f"{self.name}: widened to {self.geometry.name} in {time.monotonic() - begun:.1f} s", flush=True)
        return wide

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.folder / "target"))

    @cached_property
    def costs(self) -> CostTable:
        return CostTable.load(self.work / "costs.json", device=None)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def check(self) -> None:
        file = self.work / "check.json"
        if file.is_file():
            return
        small = load_pair(self.folder, self.device, torch.float32)
        prompts = [prompt for task in TASKS for prompt in self._prompts(task)[:1]]
        found = {}
        for dtype in (torch.float32, torch.bfloat16):  # one after the other: both may not fit
            wide = widen(small.model, small.draft, self.geometry, device=self.device, dtype=dtype)
            pair = (wide.model, wide.draft)
            found[str(dtype)] = check((small.model, small.draft), pair, prompts, new_tokens=64)._asdict()
            del wide, pair
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        print(f"{self.name}: {found}", flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")

    def record(self) -> None:
        args = self.args
        command = [
            sys.executable, "-m", "bench.lab.record_pair", "--pair", str(self.folder), "--data", str(args.data),
            "--prompts", str(args.prompts), "--out", str(self.rounds), "--temperatures", *map(str, self.fitted),
            "--train", str(args.train), "--develop", str(args.develop), "--limit", str(args.limit),
            "--new-tokens", str(args.new_tokens), "--seconds", str(max(1.0, self.deadline - time.monotonic())),
        ]  # fmt: skip
        workers = [subprocess.Popen([*command, "--share", f"{i}/{args.workers}"]) for i in range(args.workers)]
        statuses = [worker.wait() for worker in workers]
        if OUT_OF_TIME in statuses:
            raise OutOfTime
        if any(statuses):
            raise RuntimeError(f"{self.name}: a process that records failed, exit statuses {statuses}")

    def measure_costs(self) -> None:
        file = self.work / "costs.json"
        if file.is_file():
            return
        trees = [TREE if nodes == TREE.total_tokens else TreeConfig(total_tokens=nodes, max_calls=8) for nodes in NODES]
        most = self.args.max_length
        contexts = (most // 8, most // 2)  # beyond them a context costs what the nearest does
        measure_costs(self.wide, trees, contexts=contexts, name=self.name, repeats=self.args.cost_repeats).save(file)

    def choose(self) -> None:
        for temperature in self.fitted:
            self.check_time()
            choice = choose_policies(
                self.rounds, self.costs, self.chosen(temperature), temperature=temperature, epochs=self.args.epochs,
                workers=self.args.workers,
            )  # fmt: skip
            print(f"{self.name} T={temperature:g}: {choice}", flush=True)

    def replay(self) -> None:
        for temperature in self.fitted:
            self.check_time()
            folder = self.chosen(temperature)
            choice = Choice.load(folder / "choice.json")
            predicted = predict(self.rounds, self.costs, folder, choice, temperature=temperature)
            (folder / "replay.json").write_text(json.dumps(predicted, indent=1) + "\n")

    def measure(self) -> None:
        """Interleaved: a prompt goes through all methods before the next one comes."""
        machine = describe_machine(self.device)
        CostTable.load(self.work / "costs.json", device=device_name(self.device))  # runs and costs are of one device
        (self.work / "machine.json").write_text(json.dumps(machine) + "\n")
        file = self.work / "runs.jsonl"
        done = {_key(run) for run in _lines(file)}
        prompts = {task: self._prompts(task) for task in TASKS}
        warm: set[tuple[str, str, float]] = set()
        with file.open("a", encoding="utf8") as sink:
            for temperature, repeat, index, task in self._turns(prompts):
                for method in (AUTOREGRESSIVE, *METHODS):
                    run: dict[str, Any] = {
                        "pair": self.name, "task": task, "temperature": temperature, "method": method,
                        "prompt": index, "repeat": repeat,
                    }  # fmt: skip
                    if _key(run) in done or (method == AUTOREGRESSIVE and repeat > 0):
                        continue
                    self.check_time()
                    if (method, task, temperature) not in warm:  # first calls compile and capture
                        self._generate(run, prompts[task][index])
                        warm.add((method, task, temperature))
                    sink.write(json.dumps(run | self._generate(run, prompts[task][index])) + "\n")
                    sink.flush()

    def _turns(self, prompts: dict[str, list[list[int]]]) -> Iterator[tuple[float, int, int, str]]:
        for repeat in range(self.args.repeats):
            for temperature in self.args.temperatures:
                for index in range(max(map(len, prompts.values()))):
                    for task in TASKS:
                        if index < len(prompts[task]):
                            yield temperature, repeat, index, task

    def _generate(self, run: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
        method, task, temperature = run["method"], run["task"], run["temperature"]
        seed = 1000 * run["repeat"] + run["prompt"]  # one seed, one text, whatever the method
        sampling = SamplingParams(temperature=temperature, seed=seed)
        decoder: Any = self.wide.autoregressive
        size = {"nodes": 0, "max_calls": 0}
        if method != AUTOREGRESSIVE:
            folder = self.chosen(temperature)
            key = (method, "" if method != "best_fixed" else task, folder.name)
            if key not in self._policies:  # kept: a graph belongs to its policy object
                self._policies[key] = setting(Choice.load(folder / "choice.json"), folder, method, task)
            tree, policy = self._policies[key]
            decoder = self.wide.decoder(tree, policy, role="fixed" if method == "best_fixed" else "")
            decoder.policy = policy
            size = {"nodes": tree.total_tokens, "max_calls": tree.max_calls}
        output: GenerationOutput = decoder.generate(prompt, max_new_tokens=self.args.new_tokens, sampling=sampling)
        return size | _record(output)

    def generate(self) -> None:
        """transformers' greedy `generate`, and whether its text is ours."""
        file = self.work / "generate.json"
        if file.is_file():
            return
        model, found = self.wide.pair.model, {}
        texts = [prompt for task in TASKS for prompt in self._prompts(task)[: self.args.generate_prompts]]
        texts.sort(key=len, reverse=True)  # a static cache is made, and compiled for, once: for the longest
        ours = [
            self.wide.autoregressive.generate(text, max_new_tokens=self.args.new_tokens).token_ids for text in texts
        ]
        for kind in ("dynamic", "static"):
            options = {"cache_implementation": "static"} if kind == "static" else {}
            tokens, seconds, equal = 0, 0.0, 0
            for index, text in enumerate(texts):
                self.check_time()
                ids = torch.tensor([text], device=self.device)
                for _ in range(1 if index else 2):  # the first time may compile, and does not count
                    begun = time.perf_counter()
                    out = model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.args.new_tokens, do_sample=False,
                        **options,
                    )[0, len(text) :].tolist()  # fmt: skip
                    took = time.perf_counter() - begun
                seconds, tokens, equal = seconds + took, tokens + len(out), equal + (out == ours[index])
            found[kind] = {
                "tokens_per_second": tokens / seconds, "tokens": tokens, "prompts": len(texts), "texts_equal": equal
            }  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n")

    @property
    def fitted(self) -> list[float]:
        """Temperatures whose rounds are recorded and fitted to."""
        return list(self.args.temperatures) if self.args.fitted_at is None else [self.args.fitted_at]

    def chosen(self, temperature: float) -> Path:
        """Folder of the policies that measure at a temperature."""
        return self.work / f"T{temperature if self.args.fitted_at is None else self.args.fitted_at:g}"

    def _prompts(self, task: str) -> list[list[int]]:
        args = self.args
        lines = load_prompts(args.prompts / f"q_{task}.jsonl", limit=args.limit)
        return fitting(lines, self.tokenizer, new_tokens=args.new_tokens, max_length=args.max_length)


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("pair", "task", "temperature", "method", "prompt", "repeat"))


def _record(output: GenerationOutput) -> dict[str, Any]:
    m = output.metrics
    text = hashlib.sha256(json.dumps(output.token_ids).encode()).hexdigest()[:12]
    return {
        "prompt_tokens": m.num_prompt_tokens, "prefill_seconds": m.seconds_by_part["prefill"],
        "tokens": m.num_tokens, "seconds": m.seconds, "rounds": m.num_spec_steps, "calls": m.num_draft_calls,
        "accepted": m.num_accepted_draft_tokens, "stops": m.stop_histogram, "text": text,
    }  # fmt: skip


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; a torn last one is cut off, as its run is done again."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        file.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def summary(work: Path, out: Path, command: str) -> dict[str, Any]:
    """Write both result files from what lies under `work`; returns the flat one. ValueError: nothing was measured."""
    runs: list[dict[str, Any]] = []
    generated, predicted, about = {}, {}, {}
    for folder in sorted(path for path in work.iterdir() if (path / "runs.jsonl").is_file()):
        name = folder.name
        runs += _lines(folder / "runs.jsonl")
        if (folder / "generate.json").is_file():
            generated[name] = json.loads((folder / "generate.json").read_text())
        files = {path.parent.name.removeprefix("T"): path for path in folder.glob("T*/replay.json")}
        predicted[name] = {temperature: json.loads(path.read_text()) for temperature, path in files.items()}
        checked = folder / "check.json"
        about[name] = {
            "check": json.loads(checked.read_text()) if checked.is_file() else None,
            "costs": json.loads((folder / "costs.json").read_text()),
            "machine": json.loads((folder / "machine.json").read_text()),
            "cost_errors": cost_errors(
                _lines(folder / "runs.jsonl"), CostTable.load(folder / "costs.json", device=None)
            ),
            "choices": {path.parent.name: json.loads(path.read_text()) for path in folder.glob("T*/choice.json")},
        }
    if not runs:
        raise ValueError(f"no runs under {work}: the stage `measure` has written none yet")
    machine = next(iter(about.values()))["machine"]
    full = {"command": command, "machine": machine, **summarise(runs, generated, predicted)}
    full |= {"generate": generated, "replay": predicted, "pairs": about}
    short = flat(full, commit=machine["commit"], command=command)
    out.mkdir(parents=True, exist_ok=True)
    (out / "end_to_end_full.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf8")
    (out / "end_to_end.json").write_text(json.dumps(short, indent=1) + "\n", encoding="utf8")
    return short


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", action="append", default=[], metavar="RECIPE=FOLDER", help="may be repeated")
    parser.add_argument("--data", type=Path, default=Path(".lab/data"), help="folder of heldout_prompts.jsonl")
    parser.add_argument("--prompts", type=Path, help="folder of the tasks' prompts, q_TASK.jsonl")
    parser.add_argument("--work", type=Path, default=Path(".lab/end_to_end"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--fitted-at", type=float, help="fit to rounds of this temperature alone, and use that at all")
    parser.add_argument("--limit", type=int, default=20, help="prompts of every task")
    parser.add_argument("--repeats", type=int, default=2)
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
    if args.prompts is None and set(args.stages) & {"check", "record", "measure", "generate"}:
        parser.error("--prompts is needed: the folder of q_mt_bench.jsonl, q_gsm8k.jsonl, q_alpaca.jsonl, q_mbpp.jsonl")
    return args


def run_pair(name: str, folder: Path, geometry: Geometry, args: argparse.Namespace, deadline: float) -> None:
    """The chosen stages of one pair. Raises OutOfTime."""
    pair = Comparison(name, folder, geometry, args, deadline)
    steps = {
        "check": pair.check, "record": pair.record, "costs": pair.measure_costs, "policies": pair.choose,
        "replay": pair.replay, "measure": pair.measure, "generate": pair.generate,
    }  # fmt: skip
    for stage in STAGES[:-1]:
        if stage in args.stages:
            pair.check_time()
            begun = time.monotonic()
            steps[stage]()
            print(f"{name}: {stage} done in {time.monotonic() - begun:.1f} s", flush=True)


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
            run_pair(name, Path(folder), shapes[name], args, deadline)
        except OutOfTime:
            print(f"{name}: out of time; the same command goes on", flush=True)
            status = OUT_OF_TIME
            break
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if "summary" in args.stages:
        command = command_line("bench.end_to_end", argv)
        print(json.dumps(summary(args.work, args.out, command), indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
