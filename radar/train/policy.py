"""Train the stop policy on recorded rounds (RADAR, arXiv 2512.14069, section "training").

What differs from the paper's code: the objective, unless it is asked for, the split by prompt, and that the checkpoint
is chosen by replayed tokens per time (ratio of sums, bonus included) on held-out prompts instead of by a loss that
rewards certainty.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from radar.errors import UsageError
from radar.policy.base import FixedDepth
from radar.train.costs import CostTable
from radar.train.dataset import read_rounds
from radar.train.options import PolicyTraining
from radar.train.policy_run import PolicyRun
from radar.train.replay import replay
from radar.train.rounds import RoundDataset
from radar.train.tune import tune_fixed_depth

__all__ = ["PolicyTraining", "too_few", "train_policy"]

BASELINE_CALLS = 8  # EAGLE-3
COLLAPSED_SHARE = 0.95
FEWEST_ROUNDS, FEWEST_PROMPTS = 1000, 20  # a network of 90,000 weights learns nothing it can keep from fewer


def too_few(data: RoundDataset) -> str | None:
    """Why rounds are too few to train on, in words; None if they are enough."""
    rounds, prompts = len(data), len(data.prompt.unique())
    if rounds >= FEWEST_ROUNDS and prompts >= FEWEST_PROMPTS:
        return None
    return (
        f"{rounds} rounds of {prompts} prompts are too few to learn from: {FEWEST_ROUNDS} of {FEWEST_PROMPTS} are the "
        "least, several thousand are better; record more prompts"
    )


def train_policy(
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | RoundDataset,
    out: str | os.PathLike[str],
    *,
    costs: CostTable,
    progress: bool = True,
    resume: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Train on recorded rounds; write the best policy so far and, after every epoch, a state to go on from, to `out`.

    Args:
        dataset: rounds, or the recording or recordings that hold them.
        costs: of a round on the device that will decode: they decide what pays. The policy's config.json carries the
            table, and `prompts.safetensors` beside it what it was trained on (see `radar.tools.twins`).
        progress: a bar on stderr.
        resume: go on from the state in `out`. False starts over and overwrites it.
        options: fields of `PolicyTraining`.

    It runs on a GPU where there is one, whose random numbers are others than a CPU's.

    Returns, of the held-out prompts, which chose the epoch, so that the figures lean to the bright side: draft_calls,
    mean_acceptance_length, tokens_per_time and stop_histogram, their relative changes (0.05 = 5 % more) against
    `baseline`, EAGLE-3's `FixedDepth(8)`, and against the best fixed depth of these very rounds; `collapsed`, how the
    policy ignores its scores ("never stops", ...), and `too_few`, why the rounds teach nothing, in words or None;
    `history`, tokens per time after each epoch. JSON types.

    Warns of too few rounds, and if the policy collapsed: if it ends nearly every held-out round after the same call.

    Raises:
        TypeError: an unknown option.
        ValueError: a bad option, too little data, or a state in `out` of other settings or data.
        KeyboardInterrupt: passed on. `out` then holds the last full epoch; the same call goes on from there.
    """
    training = PolicyTraining(**options)
    data = dataset if isinstance(dataset, RoundDataset) else read_rounds(dataset)
    if training.max_calls is not None:
        data = data.truncate(training.max_calls)
    if data.header.tree.max_calls < 2:
        raise UsageError(
            "train_policy: rounds with max_calls=1 leave nothing to decide: record with more max_calls (--max-calls)"
        )
    if few := too_few(data):
        warnings.warn(f"train_policy: {few}", stacklevel=2)
    run = PolicyRun(training, costs, data, Path(out))
    if resume and run.checkpoint.exists():
        run.load()
    bar = tqdm(total=training.epochs, initial=run.epoch, desc="stop policy", unit="epoch", disable=not progress)
    with bar:
        while run.epoch < training.epochs:
            loss = run.train_epoch()
            run.evaluate()
            run.save()
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", best=f"{run.best['tokens_per_time']:.4g}", best_epoch=run.best["epoch"])
    run.finish()
    result = _result(run, few)
    if how := result["collapsed"]:
        warnings.warn(
            f"train_policy: the policy {how}, whatever the scores. What may help: more rounds, a larger entropy bonus; "
            "or calls cost so little or so much by this table that a fixed depth does as well",
            stacklevel=2,
        )
    return result


def _result(run: PolicyRun, few: str | None) -> dict[str, Any]:
    best, fixed = run.best, tune_fixed_depth(run.held_out, run.costs)
    eagle = FixedDepth(min(BASELINE_CALLS, run.train.header.tree.max_calls))
    base = replay(eagle, run.held_out, run.costs).to_dict()
    changes = {"draft_calls": "calls_change", "mean_acceptance_length": "acceptance_change"}
    changes |= {"tokens_per_time": "tokens_per_time_change"}
    return {
        "policy": str(run.folder),
        **{name: best[name] for name in changes},
        **{change: best[name] / base[name] - 1 for name, change in changes.items()},
        "best_fixed_change": best["tokens_per_time"] / fixed.curve[fixed.value] - 1,
        "stop_histogram": list(best["stop_histogram"]),
        "baseline": base,
        "collapsed": _collapsed(best["stop_histogram"]),
        "too_few": few,
        "epochs": run.epoch,
        "best_epoch": best["epoch"],
        "history": list(run.history),
        "train_rounds": len(run.train),
        "held_out_rounds": len(run.held_out),
    }


def _collapsed(histogram: Sequence[int]) -> str | None:
    """What a policy does that ends (almost) every round after the same call; None if it uses its choice."""
    most = max(histogram)
    if most < COLLAPSED_SHARE * sum(histogram):
        return None
    call = list(histogram).index(most) + 1
    return "never stops" if call == len(histogram) else f"always stops after call {call}"
