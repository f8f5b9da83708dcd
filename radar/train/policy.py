"""Train the stop policy on recorded rounds (RADAR, arXiv 2512.14069, section "training").

What differs from the paper's code: the objective, unless it is asked for, the split by prompt, and that the checkpoint
is chosen by replayed tokens per time (ratio of sums, bonus included) on held-out prompts instead of by a loss that
rewards certainty.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from radar.errors import UsageError
from radar.policy.base import FixedDepth
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.replay.replay import ends_of, followed, mass_of, replay, replay_ends, tune_fixed, tune_fixed_depth
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.tools.twins import save_prompts_seen
from radar.train.objectives import (
    choice_entropy,
    decision_entropy,
    exact_loss,
    joint_loss,
    paper_returns,
    ratio_returns,
    reinforce_loss,
)
from radar.train.options import PolicyTraining
from radar.train.run import Run

__all__ = ["PolicyRun", "too_few", "train_policy"]

BASELINE_CALLS = 8  # EAGLE-3
COLLAPSED_SHARE = 0.95
FEWEST_ROUNDS, FEWEST_PROMPTS = 1000, 20  # a network of 90,000 weights learns nothing it can keep from fewer
MIN_LEARNING_RATE = 1e-6
ASIDE = 0.25  # weight of a round that decoding with the policy does not make: of another kind, but there are many


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
    data: RoundDataset,
    out: str | os.PathLike[str],
    *,
    costs: CostTable,
    progress: bool = True,
    resume: bool = True,
    seconds: float = math.inf,
    **options: Any,
) -> dict[str, Any]:
    """Train on recorded rounds; write the best policy so far and, after every epoch, a state to go on from, to `out`.

    Args:
        data: the rounds.
        costs: of a round on the device that will decode: they decide what pays. The policy's config.json carries the
            table, and `prompts.safetensors` beside it what it was trained on (see `radar.tools.twins`).
        progress: a bar on stderr.
        resume: go on from the state in `out`. False starts over and overwrites it.
        seconds: no epoch begins behind them, but the first: the best until then is the result.
        options: fields of `PolicyTraining`.

    It runs on a GPU where there is one, whose random numbers are others than a CPU's.

    Returns, of the held-out prompts, which chose the epoch, so that the figures lean to the bright side: draft_calls,
    mean_acceptance_length, tokens_per_time, stop_histogram and node_histogram, their relative changes (0.05 = 5 % more)
    against `baseline`, EAGLE-3's `FixedDepth(8)`, and against the best fixed setting of these very rounds; `collapsed`,
    how the policy ignores its scores ("never stops", ...), and `too_few`, why the rounds teach nothing, in words or
    None; `history`, tokens per time after each epoch. JSON types.

    Warns of too few rounds, and if the policy collapsed: if it ends nearly every held-out round after the same call.

    Raises:
        TypeError: an unknown option.
        ValueError: a bad option, too little data, or a state in `out` of other settings or data.
        KeyboardInterrupt: passed on. `out` then holds the last full epoch; the same call goes on from there.
    """
    training, deadline = PolicyTraining(**options), time.monotonic() + seconds
    if training.max_calls is not None:
        data = data.truncate(training.max_calls)
    training = replace(training, nodes=_choices(training, costs, data))
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
        while run.epoch < training.epochs and (run.epoch == 0 or time.monotonic() < deadline):
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


def _choices(training: PolicyTraining, costs: CostTable, data: RoundDataset) -> tuple[int, ...]:
    """The numbers of nodes that the policy chooses among; the tree's own alone: it leaves them to the tree."""
    own, exact = data.header.tree.total_tokens, (training.objective, training.estimator) == ("ratio", "exact")
    if training.nodes is not None:
        if training.nodes != (own,):
            data.of_nodes(training.nodes)
        return training.nodes
    found = costs.worth_choosing(data.header.nodes, data.header.tree) if exact else ()
    return found if len(found) > 1 else (own,)


class PolicyRun(Run):
    """What one training changes. Its randomness depends on (seed, epoch) alone, so a resumed run is the same run.

    Network, scores and returns are on a GPU if there is one; replay is the CPU's.
    """

    KEPT = ("epoch", "best", "history", "rate", "weight")

    def __init__(self, training: PolicyTraining, costs: CostTable, data: RoundDataset, out: Path) -> None:
        self.train, self.held_out = train, _ = data.split_by_prompt(training.held_out, training.seed)
        self.training, self.costs, self.prompts, tree = training, costs, data.prompts, train.header.tree
        assert training.nodes is not None
        self.nodes = () if training.nodes == (tree.total_tokens,) else training.nodes
        self.joint = bool(self.nodes) and (training.objective, training.estimator) == ("ratio", "exact")
        settings = {**asdict(training), "costs": costs.to_dict(), "tree": asdict(tree), "data": data.fingerprint()}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._random = [self.device] if self.device.type == "cuda" else []  # whose state is put back, beside the CPU's
        with torch.random.fork_rng(self._random):
            torch.manual_seed(training.seed)
            sizes: dict[str, Any] = {"dropout": training.dropout, "nodes": self.nodes}
            network = PolicyNetwork(tree.tree_top_k, training.hidden_size, **sizes).to(self.device)
        adam: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        super().__init__(out, settings, network, torch.optim.Adam(network.parameters(), **adam))
        self.network: PolicyNetwork = network
        self.scores = train.scores.to(self.device)
        self.epoch = 0
        self.best: dict[str, Any] = {"epoch": 0, "tokens_per_time": -math.inf}
        self.history: list[float] = []
        self.rate = max(tune_fixed_depth(train, costs).curve.values())
        self.weight = torch.ones(len(train), device=self.device)
        if self.nodes:
            places = [train.header.nodes.index(n) for n in self.nodes]
            self.mass = mass_of(network, train, torch.arange(len(train))).to(self.device)
            self.accept = train.expected_of_nodes()[..., places]
            self.times = costs.times_of_nodes(tree, train.position, self.nodes)
            if not self.joint:
                self.accept, self.times = self.accept[..., 0], self.times[..., 0]
        else:
            self.accept, self.times = train.expected_accept(), costs.times(tree, train.position)
        if training.objective == "paper":
            usual = 10 * (costs.mean_call_seconds + costs.decision_seconds)
            beta = usual if training.beta is None else training.beta
            returns = paper_returns(self.accept, self.times, alpha=training.alpha, beta=beta, gamma=training.gamma)
            self.returns = returns.to(self.device)

    def load(self) -> None:
        """See `Run`."""
        super().load()
        self.weight = self.weight.to(self.device)

    def train_epoch(self) -> float:
        """One pass over the rounds; returns the mean loss."""
        options, start = self.training, self.training.learning_rate
        low = min(MIN_LEARNING_RATE, start)  # cosine annealing, stepped per epoch as the paper does
        for group in self.optimizer.param_groups:
            group["lr"] = low + (start - low) * (1 + math.cos(math.pi * self.epoch / options.epochs)) / 2
        if self.joint:
            self.returns = (self.accept - self.rate * self.times).float().to(self.device)
        elif options.objective == "ratio":
            self.returns = ratio_returns(self.accept, self.times, rate=self.rate).to(self.device)
        bonus = options.entropy * (1 - self.epoch / options.epochs)
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        self.network.train()
        with torch.random.fork_rng(self._random):
            torch.manual_seed(options.seed * 1_000_003 + self.epoch + 1)
            order = torch.randperm(len(self.train)).to(self.device)
            for index in order.split(options.batch_size):
                loss = self._loss(index, bonus)
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm)
                self.optimizer.step()
                summed += loss.detach() * len(index)
        total = summed.item()
        if not math.isfinite(total):
            raise UsageError(f"train_policy: the loss of epoch {self.epoch + 1} is not finite: lower learning_rate")
        self.epoch += 1
        return total / len(self.train)

    def _loss(self, index: Tensor, bonus: float) -> Tensor:
        """Of some rounds, with the bonus for undecided actions."""
        if self.joint:
            logits, sizes = self.network.both(self.scores[index], self.mass[index])
            logits = logits[:, :-1]  # behind the last call nothing is decided but the nodes
            undecided = decision_entropy(logits) + choice_entropy(logits, sizes)
            return joint_loss(logits, sizes, self.returns[index], self.weight[index]) - bonus * undecided
        logits = self.network(self.scores[index, :-1])
        loss_of = reinforce_loss if self.training.estimator == "reinforce" else exact_loss
        return loss_of(logits, self.returns[index]) - bonus * decision_entropy(logits)

    def evaluate(self) -> None:
        """Replay; keep and write the policy if it is the fastest so far."""
        now = replay(self.network, self.held_out, self.costs)
        self.history.append(now.tokens_per_time)
        if self.training.objective == "ratio":
            self._follow()
        if now.tokens_per_time > self.best["tokens_per_time"]:
            weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.best = {"epoch": self.epoch, "network": weights, **now._asdict()}
            save_policy(self.network, self.folder, metadata=self._metadata())
            save_prompts_seen(self.folder, self.prompts)

    def _follow(self) -> None:
        """Where the policy goes in the training rounds, and how fast that is."""
        ends = ends_of(self.network, self.train)
        # never below the best fixed depth
        self.rate = max(self.rate, replay_ends(ends, self.train, self.costs).tokens_per_time)
        self.weight = torch.where(followed(ends, self.train), 1.0, ASIDE).to(self.device)

    def _metadata(self) -> dict[str, Any]:
        header = self.train.header
        recorded = {**header.metadata, "temperature": header.temperature}
        rounds = {"train_rounds": len(self.train), "held_out_rounds": len(self.held_out)}
        held_out = {name: value for name, value in self.best.items() if name != "network"}
        return {"recorded": recorded, "training": {**self.settings, **rounds}, "held_out": held_out}

    def finish(self) -> None:
        """Write the fastest epoch's network once more, in evaluation mode."""
        self.network.load_state_dict(self.best["network"])
        save_policy(self.network.eval(), self.folder, metadata=self._metadata())


def _result(run: PolicyRun, few: str | None) -> dict[str, Any]:
    best, fixed = run.best, tune_fixed(run.held_out, run.costs)
    eagle = FixedDepth(min(BASELINE_CALLS, run.train.header.tree.max_calls))
    base = replay(eagle, run.held_out, run.costs)._asdict()
    changes = {"draft_calls": "calls_change", "mean_acceptance_length": "acceptance_change"}
    changes |= {"tokens_per_time": "tokens_per_time_change"}
    return {
        "policy": str(run.folder),
        **{name: best[name] for name in changes},
        **{change: best[name] / base[name] - 1 for name, change in changes.items()},
        "best_fixed_change": best["tokens_per_time"] / max(fixed.curve.values()) - 1,
        "stop_histogram": list(best["stop_histogram"]),
        "node_histogram": dict(best["node_histogram"]),
        "baseline": base,
        "collapsed": _collapsed(best["stop_histogram"], best["node_histogram"]),
        "too_few": few,
        "epochs": run.epoch,
        "best_epoch": best["epoch"],
        "history": list(run.history),
        "train_rounds": len(run.train),
        "held_out_rounds": len(run.held_out),
    }


def _collapsed(histogram: Sequence[int], nodes: Mapping[int, int]) -> str | None:
    """What a policy does that ends (almost) every round after the same call, with the same number of nodes; None if it
    uses its choice."""
    most = max(histogram)
    if min(most, max(nodes.values())) < COLLAPSED_SHARE * sum(histogram):
        return None
    call = list(histogram).index(most) + 1
    return "never stops" if call == len(histogram) else f"always stops after call {call}"
