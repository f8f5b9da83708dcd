"""One training of a stop policy: its epochs, the best of them, and what it leaves in its folder."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from radar.errors import UsageError
from radar.policy.lstm import PolicyNetwork, save_policy
from radar.tools.twins import save_prompts_seen
from radar.train.costs import CostTable
from radar.train.objectives import decision_entropy, exact_loss, paper_returns, ratio_returns, reinforce_loss
from radar.train.options import PolicyTraining
from radar.train.replay import replay
from radar.train.rounds import RoundDataset
from radar.train.run import Run
from radar.train.tune import tune_fixed_depth

__all__ = ["PolicyRun"]

MIN_LEARNING_RATE = 1e-6


class PolicyRun(Run):
    """What one training changes. Its randomness depends on (seed, epoch) alone, so a resumed run is the same run.

    Network, scores and returns are on a GPU if there is one; replay is the CPU's.
    """

    KEPT = ("epoch", "best", "history", "rate")

    def __init__(self, training: PolicyTraining, costs: CostTable, data: RoundDataset, out: Path) -> None:
        self.train, self.held_out = train, _ = data.split_by_prompt(training.held_out, training.seed)
        self.training, self.costs, self.prompts = training, costs, data.prompts
        tree = train.header.tree
        settings = {**asdict(training), "costs": costs.to_dict(), "tree": asdict(tree), "data": data.fingerprint()}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._random = [self.device] if self.device.type == "cuda" else []  # whose state is put back, beside the CPU's
        with torch.random.fork_rng(self._random):
            torch.manual_seed(training.seed)
            network = PolicyNetwork(tree.tree_top_k, training.hidden_size, dropout=training.dropout)
        adam: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        network = network.to(self.device)
        super().__init__(out, settings, network, torch.optim.Adam(network.parameters(), **adam))
        self.network: PolicyNetwork = network
        self.scores = train.scores[:, :-1].to(self.device)
        self.epoch = 0
        self.best: dict[str, Any] = {"epoch": 0, "tokens_per_time": -math.inf}
        self.history: list[float] = []
        self.accept, self.times = train.expected_accept(), costs.times(tree, train.position)
        self.rate = max(tune_fixed_depth(train, costs).curve.values())
        if training.objective == "paper":
            usual = 10 * (costs.mean_call_seconds + costs.decision_seconds)
            beta = usual if training.beta is None else training.beta
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
            save_policy(self.network, self.folder, metadata=self._metadata())
            save_prompts_seen(self.folder, self.prompts)

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
