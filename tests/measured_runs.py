"""Runs of two cells as `bench.end_to_end` writes them, and the keys of the flat summary."""

from bench.lab.speed import AUTOREGRESSIVE

ISSUE_KEYS = [
    "radar_over_ar_min", "radar_over_ar_max", "radar_over_generate_geomean", "radar_over_eagle3_geomean",
    "radar_over_best_fixed_geomean", "radar_over_published_geomean", "radar_over_threshold_geomean",
    "draft_calls_change", "acceptance_change", "oracle_gap_closed", "replay_error", "commit", "command",
]  # fmt: skip


def run(method, prompt, tokens, seconds, *, task="gsm8k", repeat=0, temperature=0.0, pair="a", calls=8, rounds=4):
    return {
        "pair": pair, "task": task, "temperature": temperature, "method": method, "prompt": prompt, "repeat": repeat,
        "tokens": tokens, "seconds": seconds, "rounds": rounds, "calls": calls, "accepted": tokens - rounds,
        "stops": {"2": rounds}, "text": "same", "prefill_seconds": 0.5,
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
    speeds = {"radar": 126.0, "eagle3": 100.0, "best_fixed": 104.0}
    one = {
        "tokens_per_second": speeds, "best_fixed_of_these_rounds": 105.0, "attainable": 131.25,
        "radar": {"tokens_per_second": 125.0},  # with the tree of the oracle
    }  # fmt: skip
    return {"a": {"0": {"gsm8k": one, "mbpp": one}}}
