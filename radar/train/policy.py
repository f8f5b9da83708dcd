"""Train the stop policy on recorded rounds (RADAR, arXiv 2512.14069, section "training"; the defaults are its code's).

What differs from that code: the split is by prompt, and the checkpoint is chosen by replayed tokens per time (ratio of
sums, bonus included) on held-out prompts instead of by a loss that rewards certainty.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from tqdm import tqdm

from radar.errors import UsageError
from radar.policy.base import FixedDepth
from radar.policy.lstm import PolicyNetwork, save_policy
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset, read_rounds
from radar.train.objectives import (
    decision_entropy,
    exact_loss,
    paper_returns,
    ratio_returns,
    reinforce_loss,
)
from radar.train.replay import replay
from radar.train.tune import tune_fixed_depth

__all__ = ["PolicyTraining", "TrainResult", "train_policy"]

STATE_FILE = "training.pt"
MIN_LEARNING_RATE = 1e-6
BASELINE_CALLS = 8  # EAGLE-3
COLLAPSED_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """Options of `train_policy`. Defaults are the paper's for Llama-3-8B, where it states them.

    Attributes:
        objective: "paper" (-alpha per continue, beta * L / T at the stop, gamma) or "ratio" (tokens - rate * time, the
            rate moved to the throughput achieved; alpha, beta and gamma are not used).
        estimator: "reinforce" (sampled actions, as the paper) or "exact" (its expectation, no sampling noise).
        beta: None is the paper's 10 * (call + decision), of the mean call.
        entropy: weight of a bonus for undecided actions (mean entropy in nats), falling to 0 over the epochs. The paper
            has none; without it, cheap calls or max_calls=8 can drive a fresh policy into "never stop". Try 0.1.
        max_calls: None is what the rounds were recorded with.
        held_out: share of the prompts that choose the checkpoint and give the result.
    """

    objective: str = "paper"
    estimator: str = "reinforce"
    alpha: float = 0.02
    beta: float | None = None
    gamma: float = 0.99
    entropy: float = 0.0
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    dropout: float = 0.1
    epochs: int = 100
    batch_size: int = 64
    hidden_size: int = 128
    clip_norm: float = 1.0
    max_calls: int | None = None
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("objective", ("paper", "ratio")), ("estimator", ("reinforce", "exact"))):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"train_policy: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "hidden_size", *(("max_calls",) if self.max_calls is not None else ())):
            value = getattr(self, name)
            least = 2 if name == "max_calls" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"train_policy: {name} must be an integer of {least} or more, got {value!r}")
        ranges: dict[str, tuple[float, float]] = {
            "alpha": (0, 1e6), "gamma": (0, 1), "entropy": (0, 1e6), "learning_rate": (1e-9, 10),
            "weight_decay": (0, 10), "dropout": (0, 0.99), "held_out": (1e-6, 1 - 1e-6), "clip_norm": (1e-9, 1e9),
        }  # fmt: skip
        if self.beta is not None:
            ranges["beta"] = (0, 1e9)
        for name, (low, high) in ranges.items():
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
                raise UsageError(f"train_policy: {name} must be from {low:g} to {high:g}, got {number!r}")


class TrainResult(TypedDict):
    """On the held-out prompts; changes are relative, 0.05 = 5 % more, against EAGLE-3's `FixedDepth(8)`.

    The same prompts chose the epoch, so the figures lean a little to the bright side: measure on other prompts.
    """

    policy: str  # folder
    draft_calls: float
    mean_acceptance_length: float
    tokens_per_time: float
    calls_change: float
    acceptance_change: float
    tokens_per_time_change: float
    stop_histogram: list[int]
    baseline: dict[str, Any]
    collapsed: str | None  # "always stops after call 1", "never stops", ...: the chosen policy does not read its scores
    epochs: int
    best_epoch: int
    history: list[float]  # held-out tokens per time after each epoch
    train_rounds: int
    held_out_rounds: int


def train_policy(
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | RoundDataset,
    out: str | os.PathLike[str],
    *,
    costs: CostTable | None = None,
    progress: bool = True,
    resume: bool = True,
    **options: Any,
) -> TrainResult:
    """Train on recorded rounds; write the best policy so far and, after every epoch, a state to go on from, to `out`.

    Args:
        dataset: rounds, or the file or files that hold them.
        costs: of a round; None is `CostTable.paper()`. Measure your own: they decide what pays. The policy's
            config.json carries the table.
        progress: a bar on stderr.
        resume: go on from the state in `out`. False starts over and overwrites it.
        options: fields of `PolicyTraining`.

    It runs on a GPU where there is one, whose random numbers are others than a CPU's.

    Warns if the policy collapsed: if it ends nearly every held-out round after the same call.

    Raises:
        TypeError: an unknown option.
        ValueError: a bad option, too little data, or a state in `out` of other settings or data.
        KeyboardInterrupt: passed on. `out` then holds the last full epoch; the same call goes on from there.
    """
    training = PolicyTraining(**options)
    costs = costs or CostTable.paper()
    out = Path(out)
    data = dataset if isinstance(dataset, RoundDataset) else read_rounds(dataset)
    if training.max_calls is not None:
        data = data.truncate(training.max_calls)
    if data.header.tree.max_calls < 2:
        raise UsageError(
            "train_policy: rounds with max_calls=1 leave nothing to decide: record with more max_calls (--max-calls)"
        )
    train, held_out = data.split_by_prompt(training.held_out, training.seed)
    run = _Run(training, costs, train, held_out, out, fingerprint=data.fingerprint())
    if resume:
        run.restore()
    bar = tqdm(total=training.epochs, initial=run.epoch, desc="stop policy", unit="epoch", disable=not progress)
    with bar:
        while run.epoch < training.epochs:
            loss = run.train_epoch()
            run.evaluate()
            run.save()
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", best=f"{run.best['tokens_per_time']:.4g}", best_epoch=run.best["epoch"])
    return run.result()


class _Run:
    """What one training changes. Its randomness depends on (seed, epoch) alone, so a resumed run is the same run.

    Network, scores and returns are on a GPU if there is one; replay is the CPU's.
    """

    def __init__(
        self,
        training: PolicyTraining,
        costs: CostTable,
        train: RoundDataset,
        held_out: RoundDataset,
        out: Path,
        *,
        fingerprint: str,
    ) -> None:
        self.training, self.costs, self.train, self.held_out, self.out = training, costs, train, held_out, out
        tree = train.header.tree
        self.settings = {**asdict(training), "costs": costs.to_dict(), "tree": asdict(tree), "data": fingerprint}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._random = [self.device] if self.device.type == "cuda" else []  # whose state is put back, beside the CPU's
        with torch.random.fork_rng(self._random):
            torch.manual_seed(training.seed)
            network = PolicyNetwork(tree.tree_top_k, training.hidden_size, dropout=training.dropout)
        self.network = network.to(self.device)
        self.scores = train.scores[:, :-1].to(self.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.baseline = replay(FixedDepth(min(BASELINE_CALLS, tree.max_calls)), held_out, costs)
        self.epoch = 0
        self.best: dict[str, Any] = {"epoch": 0, "tokens_per_time": -math.inf}
        self.history: list[float] = []
        self.accept, self.times = train.expected_accept(), costs.times(tree, train.position)
        self.rate = max(tune_fixed_depth(train, costs).curve.values())
        if training.objective == "paper":
            beta = training.beta
            if beta is None:
                beta = 10 * (costs.mean_call_seconds + costs.decision_seconds)
            shape = {"alpha": training.alpha, "beta": beta, "gamma": training.gamma}
            self.returns = paper_returns(self.accept, self.times, **shape).to(self.device)

    def train_epoch(self) -> float:
        """One pass over the rounds; returns the mean loss."""
        options, start = self.training, self.training.learning_rate
        low = min(MIN_LEARNING_RATE, start)  # cosine annealing, stepped per epoch as the paper does
        rate = low + (start - low) * (1 + math.cos(math.pi * self.epoch / options.epochs)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if options.objective == "ratio":
            self.returns = ratio_returns(self.accept, self.times, rate=self.rate).to(self.device)
        loss_of = reinforce_loss if options.estimator == "reinforce" else exact_loss
        bonus = options.entropy * (1 - self.epoch / options.epochs)
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        self.network.train()
        with torch.random.fork_rng(self._random):
            torch.manual_seed(options.seed * 1_000_003 + self.epoch + 1)
            order = torch.randperm(len(self.train)).to(self.device)
            for begin in range(0, len(order), options.batch_size):
                index = order[begin : begin + options.batch_size]
                logits = self.network(self.scores[index])
                loss = loss_of(logits, self.returns[index])
                if bonus > 0:
                    loss = loss - bonus * decision_entropy(logits)
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

    def evaluate(self) -> None:
        """Replay; keep and write the policy if it is the fastest so far."""
        now = replay(self.network, self.held_out, self.costs)
        self.history.append(now.tokens_per_time)
        if self.training.objective == "ratio":  # never below the best fixed depth, which the policy can always express
            self.rate = max(self.rate, replay(self.network, self.train, self.costs).tokens_per_time)
        if now.tokens_per_time > self.best["tokens_per_time"]:
            weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.best = {"epoch": self.epoch, "network": weights, **now.to_dict()}
            save_policy(self.network, self.out, metadata=self._metadata())

    def _metadata(self) -> dict[str, Any]:
        header = self.train.header
        recorded = {**header.metadata, "temperature": header.temperature}
        rounds = {"train_rounds": len(self.train), "held_out_rounds": len(self.held_out)}
        held_out = {name: value for name, value in self.best.items() if name != "network"}
        return {"recorded": recorded, "training": {**self.settings, **rounds}, "held_out": held_out}

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "history": self.history,
            "rate": self.rate,
        }
        temporary = self.out / (STATE_FILE + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.out / STATE_FILE)

    def restore(self) -> None:
        file = self.out / STATE_FILE
        if not file.exists():
            return
        data = file.read_bytes()
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            found = state["settings"]
        except Exception as error:  # torch raises a dozen kinds for foreign and torn files
            raise UsageError(
                f"{file} is not a training state: remove it, or start over with resume=False (--restart)"
            ) from error
        keys = sorted(self.settings.keys() | found.keys())
        if different := [
            "other rounds" if key == "data" else f"{key}: {found.get(key)!r} there, {self.settings.get(key)!r} now"
            for key in keys
            if found.get(key) != self.settings.get(key)
        ]:
            raise UsageError(
                f"{file} belongs to another training ({'; '.join(different)}): "
                "use its settings, another folder, or resume=False (--restart) to start over"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best, self.history, self.rate = (state[k] for k in ("epoch", "best", "history", "rate"))

    def result(self) -> TrainResult:
        self.network.load_state_dict(self.best["network"])
        save_policy(self.network.eval(), self.out, metadata=self._metadata())
        best, base = self.best, self.baseline
        if collapsed := _collapsed(best["stop_histogram"]):
            warnings.warn(
                f"train_policy: the policy {collapsed}, whatever the scores: another alpha or cost table, or an "
                "entropy bonus such as entropy=0.1, may help",
                stacklevel=3,
            )
        return TrainResult(
            policy=str(self.out),
            draft_calls=best["draft_calls"],
            mean_acceptance_length=best["mean_acceptance_length"],
            tokens_per_time=best["tokens_per_time"],
            calls_change=best["draft_calls"] / base.draft_calls - 1,
            acceptance_change=best["mean_acceptance_length"] / base.mean_acceptance_length - 1,
            tokens_per_time_change=best["tokens_per_time"] / base.tokens_per_time - 1,
            stop_histogram=list(best["stop_histogram"]),
            baseline=base.to_dict(),
            collapsed=collapsed,
            epochs=self.epoch,
            best_epoch=best["epoch"],
            history=list(self.history),
            train_rounds=len(self.train),
            held_out_rounds=len(self.held_out),
        )


def _collapsed(histogram: Sequence[int]) -> str | None:
    """What a policy does that ends (almost) every round after the same call; None if it uses its choice."""
    most = max(histogram)
    if most < COLLAPSED_SHARE * sum(histogram):
        return None
    call = list(histogram).index(most) + 1
    return "never stops" if call == len(histogram) else f"always stops after call {call}"
