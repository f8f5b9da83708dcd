"""Decode the tasks' prompts with every method in turn, and with transformers' `generate`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.lab.pairs import Wide
from bench.lab.policies import FIXED, METHODS, Choice, setting
from bench.runs import AUTOREGRESSIVE, key_of, read_runs, run_of
from radar import SamplingParams, TreeConfig
from radar.policy.base import StopPolicy

__all__ = ["Methods", "measure", "measure_generate"]

Prompts = Mapping[str, Sequence[Sequence[int]]]  # token ids by task


class Methods:
    """The decoders of a wide pair, as its policies were chosen.

    Args:
        wide: the pair.
        work: folder of T0/choice.json and the like.
        new_tokens: limit of a text.
    """

    def __init__(self, wide: Wide, work: Path, *, new_tokens: int) -> None:
        self.wide, self.work, self.new_tokens = wide, work, new_tokens
        self._settings: dict[tuple[str, str, float], tuple[TreeConfig, StopPolicy]] = {}

    def decode(self, run: Mapping[str, Any], prompt: Sequence[int]) -> dict[str, Any]:
        """One generation: what `bench.runs` keeps of it."""
        method, task, temperature = run["method"], run["task"], run["temperature"]
        sampling = SamplingParams(temperature=temperature, seed=run["prompt"])  # one text, whatever the method
        decoder: Any = self.wide.autoregressive
        size = {"nodes": 0, "max_calls": 0}
        if method != AUTOREGRESSIVE:
            key = (method, task if method == FIXED else "", temperature)
            if key not in self._settings:  # kept: a graph belongs to its policy object
                folder = self.work / f"T{temperature:g}"
                self._settings[key] = setting(Choice.load(folder / "choice.json"), folder, method, task)
            tree, policy = self._settings[key]
            decoder = self.wide.decoder(tree, policy, role="fixed" if method == FIXED else "")
            size = {"nodes": tree.total_tokens, "max_calls": tree.max_calls}
        return size | run_of(decoder.generate(prompt, max_new_tokens=self.new_tokens, sampling=sampling))


def measure(
    methods: Methods, name: str, prompts: Prompts, *, temperatures: Sequence[float], check_time: Callable[[], None]
) -> None:  # fmt: skip
    """Append to `runs.jsonl`. Interleaved: a prompt goes through all methods before the next one comes.

    Args:
        name: of the pair.
        check_time: raises when the budget is spent; what is done is on disk, and the same call goes on there.
    """
    file = methods.work / "runs.jsonl"
    done = {key_of(run) for run in read_runs(file)}
    warm: set[tuple[str, str, float]] = set()
    with file.open("a", encoding="utf8") as sink:
        for temperature, index, task in product(temperatures, range(max(map(len, prompts.values()))), prompts):
            for method in (AUTOREGRESSIVE, *METHODS):
                run = {"pair": name, "task": task, "temperature": temperature, "method": method, "prompt": index}
                if index >= len(prompts[task]) or key_of(run) in done:
                    continue
                check_time()
                if (method, task, temperature) not in warm:  # first calls compile and capture
                    methods.decode(run, prompts[task][index])
                    warm.add((method, task, temperature))
                sink.write(json.dumps(run | methods.decode(run, prompts[task][index])) + "\n")
                sink.flush()


def measure_generate(
    wide: Wide, prompts: Sequence[Sequence[int]], *, new_tokens: int, check_time: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """transformers' greedy `generate` by kind of cache: its speed, and how many texts are ours."""
    found = {}
    texts = sorted(prompts, key=len, reverse=True)  # a static cache is made, and compiled for, once: for the longest
    ours = [wide.autoregressive.generate(text, max_new_tokens=new_tokens).token_ids for text in texts]
    for kind in ("dynamic", "static"):
        options: dict[str, Any] = {"cache_implementation": "static"} if kind == "static" else {}
        tokens, seconds, equal = 0, 0.0, 0
        for text, expected in zip(texts, ours, strict=True):
            check_time()
            ids = torch.tensor([text], device=wide.device)
            options |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
            for _ in range(2):  # the first time may compile, for each length of a prompt, and does not count
                begun = time.perf_counter()
                out = wide.pair.model.generate(ids, **options)[0, len(text) :].tolist()
                took = time.perf_counter() - begun
            seconds, tokens, equal = seconds + took, tokens + len(out), equal + (out == expected)
        found[kind] = {
            "tokens_per_second": tokens / seconds, "tokens": tokens, "prompts": len(texts), "texts_equal": equal
        }  # fmt: skip
    return found
