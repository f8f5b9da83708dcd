"""Runs of comparisons, made up, and the result files that hold them."""

import json
import lzma

from bench.runs import AUTOREGRESSIVE

TASKS = ("mt_bench", "gsm8k", "alpaca", "mbpp")
SECONDS = {AUTOREGRESSIVE: 12.0, "eagle3": 5.0, "best_fixed": 4.8, "threshold": 4.1, "published": 4.4, "radar": 4.0}
REPLAYED = {"best_fixed_hindsight": 4.5, "ddd": 4.6, "radar_16": 3.9, "published_alpha_0.1": 4.7, "hindsight": 3.0}
MACHINE = {"hardware": "a card", "torch": "2", "commit": "abcdef1234"}


def run(method, prompt, tokens, seconds, *, task="gsm8k", temperature=0.0, pair="a", calls=8, rounds=4, text="same"):
    return {
        "pair": pair, "task": task, "temperature": temperature, "method": method, "prompt": prompt, "tokens": tokens,
        "seconds": seconds, "rounds": rounds, "calls": calls, "accepted": tokens - rounds, "stops": {"2": rounds},
        "text": text, "prefill_seconds": 0.5, "prompt_tokens": 9, "rows": 1,
        "drafted": rounds * (99 if method == "radar" else 59),
    }  # fmt: skip


def decoded(pair="llama", methods=SECONDS, prompts=3):
    """RADAR is 3 to 4 times as fast as one token at a time, 4 on MBPP."""
    runs = []
    for temperature in (0.0, 1.0):
        for task in TASKS:
            for prompt in range(prompts):
                for method in methods:
                    seconds = SECONDS[method] * (0.75 if (method, task) == ("radar", "mbpp") else 1.0)
                    about = {"task": task, "pair": pair, "temperature": temperature}
                    runs.append(run(method, prompt, 60, seconds, calls=24 if method == "radar" else 32, **about))
    return runs


def replayed(pair, prompts=5):
    """Methods alike on every task; `radar_16` is there for one pair alone."""
    seconds = {name: one for name, one in (SECONDS | REPLAYED).items() if name != AUTOREGRESSIVE}
    if pair != "llama":
        del seconds["radar_16"]
    names = ("pair", "task", "temperature", "method", "prompt", "tokens", "seconds", "rounds", "calls", "drafted")
    runs = []
    for temperature in (0.0, 1.0):
        oracle = {"knowing": 3.5} if temperature else {}
        for task in TASKS:
            for prompt in range(prompts):
                for method, one in (seconds | oracle).items():
                    about = {"task": task, "pair": pair, "temperature": temperature}
                    full = run(method, prompt, 60 + prompt, one, calls=24 if method == "radar" else 32, **about)
                    runs.append({name: full[name] for name in names})
    return runs


TREE = {"steps": 7, "topk": 10, "verified": 60}


def peer(name, k, rows, speed, seconds=8.0, prompts=3):
    """A peer's measurement; its texts are as long as ours."""
    each = [{"task": task, "seconds": seconds, "first": 0.1} for task in TASKS for _ in range(prompts)]
    about = {"peer": name, "k": k, "rows_at_once": rows, "tokens": 60 * len(each), "wall_seconds": 1.0}
    return about | {"tokens_per_second": speed, "tokens_per_round": 2.0, "start_seconds": 30.0, "rows": each}


def write_results(folder):
    """Small result files of every kind, as the comparison leaves them."""
    files = {
        "end_to_end/released_runs.jsonl.xz": [
            *2 * [{"pair": "llama", "about": MACHINE, "argv": ["--model", "/somewhere/smol"]}],
            *decoded(),
            *decoded("qwen", (AUTOREGRESSIVE, "eagle3", "threshold", "radar"), prompts=2),
            *({"pair": "llama", "temperature": 0.0, "method": method, "rows": 8, "tokens": 4000, "seconds": seconds,
               "texts": []} for method, seconds in ((AUTOREGRESSIVE, 4.0), ("radar", 2.0))),
        ],
        "replay/released_runs.jsonl.xz": [*replayed("llama"), *replayed("qwen")],
    }  # fmt: skip
    peers = [peer("vllm 0.26.0", 0, 1, 5.0, 12.0), peer("vllm 0.26.0", 3, 1, 7.5), peer("vllm 0.26.0", 3, 8, 800.0)]
    peers.append(peer("transformers generate static", 0, 1, 3.0, 20.0))
    peers += [peer("sglang 0.5.16", None, rows, 6.0 * rows) | TREE for rows in (1, 8)]
    calls = {"calls": [0.5, 0.25, 0.25], "decision": 0.003}
    shape = {"verify": {"1": {"2048": [4.0]}, "60": {"2048": [5.0, 5.5]}}, "draft": {"10": {"2048": calls}}}
    part = {"prefix": 1024, "verify": 4.0, "draft_calls": [0.5, 0.25, 0.25], "decision": 0.1, "select": 0.1}
    about = {"command": "a script", "commit": "abc", "machine": MACHINE}
    records = {
        "end_to_end/peers_h200.json": {"machine": MACHINE, "commands": [], "runs": peers},
        "round/costs_by_rows_h200.json": about | {"shapes": {"Llama-3.1-8B": shape}},
        "round/round_h200.json": about | {"parts": [part | {"accept": 0.1, "commit": 0.1}]},
        "replay/released_choices.json": {"transfer": {"what": "A policy elsewhere.", "figures": {"a": {"b": 1.01}}}},
    }
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(folder / name, "wt") as sink:
            sink.writelines(json.dumps(line) + "\n" for line in lines)
    for name, record in records.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(record))
    return folder
