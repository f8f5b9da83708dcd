"""Runs of two cells as `bench.end_to_end` keeps them."""

from bench.runs import AUTOREGRESSIVE


def run(method, prompt, tokens, seconds, *, task="gsm8k", temperature=0.0, pair="a", calls=8, rounds=4, text="same"):
    return {
        "pair": pair, "task": task, "temperature": temperature, "method": method, "prompt": prompt, "tokens": tokens,
        "seconds": seconds, "rounds": rounds, "calls": calls, "accepted": tokens - rounds, "stops": {"2": rounds},
        "text": text, "prefill_seconds": 0.5, "nodes": 100 if method == "radar" else 60,
    }  # fmt: skip


def full_runs():
    """Two cells; RADAR is 3 and 4 times as fast as one token at a time."""
    seconds = {AUTOREGRESSIVE: 12.0, "eagle3": 5.0, "best_fixed": 4.8, "threshold": 4.1, "published": 4.4, "radar": 4.0}
    runs = []
    for task, factor in (("gsm8k", 1.0), ("mbpp", 0.75)):
        for prompt in range(3):
            for method, time in seconds.items():
                time = time * factor if method == "radar" else time
                runs.append(run(method, prompt, 60, time, task=task, calls=24 if method == "radar" else 32, rounds=4))
    return runs


def predictions():
    one = {"tokens_per_second": {"radar": 126.0, "eagle3": 100.0, "best_fixed": 104.0}}
    return {"a": {"0": {"gsm8k": one, "mbpp": one}}}


def choices():
    """What `bench.end_to_end` says of the pair."""
    fixed = {task: [9, 100] for task in ("gsm8k", "mbpp")}
    return {"a": {"choices": {"T0": {"fixed": fixed, "nodes": {"threshold": 32, "radar": 100}}}}}
