"""Stop rules that are small networks over one level: SpecDec++'s (and DISCO's) acceptance head, and LTD's policy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.policy.base import RoundSignals, Settled
from radar.policy.network import SCORE_FLOOR

__all__ = ["AcceptanceHead", "LevelNetwork", "LevelPolicy"]


class LevelNetwork(nn.Module):
    """Linear(F -> H), ReLU, Linear(H -> 1) over one level's features: k scores, call / 10, and context / 1000 if asked.

    Scores below `SCORE_FLOOR` count as it.
    """

    def __init__(self, scores: int, hidden_size: int, *, context: bool) -> None:
        super().__init__()
        self.scores, self.context = scores, context
        self.layers = nn.Sequential(nn.Linear(scores + 1 + context, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, scores: Tensor, call: Tensor, context: Tensor) -> Tensor:
        """Scores [..., k], call [...] from 1, context length [...] in tokens -> logits [...]."""
        features = [scores.clamp(min=SCORE_FLOOR), call[..., None] / 10]
        if self.context:
            features.append(context[..., None] / 1000)
        logits: Tensor = self.layers(torch.cat(features, dim=-1))
        return logits[..., 0]


class _LevelRule(Settled):
    """What both rules share: the network on the device, and the number of the call."""

    def __init__(self, network: LevelNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self._signals: RoundSignals | None = None

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        if tree.tree_top_k != self.network.scores:
            raise UsageError(
                f"{type(self).__name__} reads {self.network.scores} scores a level, but the tree has "
                f"tree_top_k={tree.tree_top_k}"
            )
        if self.network.context and self._signals is None:
            raise UsageError(f"{type(self).__name__} reads the context length, which this runner does not offer")
        self._network = copy.deepcopy(self.network).to(device)  # the engine's copy of a policy must not move ours
        self._call = torch.zeros(batch_size, device=device)
        self._context = torch.zeros(batch_size, device=device)

    def reset(self) -> None:
        self._call.zero_()
        if self._signals is not None:
            self._context.copy_(self._signals.context_length)

    def logits(self, scores: Tensor) -> Tensor:
        self._call += 1
        logits: Tensor = self._network(scores, self._call, self._context)
        return logits


class AcceptanceHead(_LevelRule):
    """SpecDec++ (arXiv 2405.19715): stop if P(some drafted token is rejected) = 1 - product of the head's probabilities
    exceeds `bound`.

    Published: a ResNet on the draft's hidden state, for chains, bound 0.3. Here the head reads the level's scores and
    depth and says whether the target's path is in the tree at this level, given that it was one level above; that is
    also what DISCO (arXiv 2405.04304) reads. `radar.train.contenders` fits it, a rejection weighing 6 as published.
    """

    def __init__(self, network: LevelNetwork, bound: float = 0.3) -> None:
        super().__init__(network)
        if not 0.0 <= bound <= 1.0:
            raise UsageError(f"AcceptanceHead: bound must be a probability, got {bound!r}")
        self.bound = float(bound)

    def __repr__(self) -> str:
        return f"AcceptanceHead({self.bound:g})"

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        super().bind(batch_size, tree, device)
        self._alive = torch.ones(batch_size, device=device)

    def reset(self) -> None:
        super().reset()
        self._alive.fill_(1.0)

    def stop(self, scores: Tensor) -> Tensor:
        self._alive *= self.logits(scores).sigmoid()
        return self._alive < 1 - self.bound


class LevelPolicy(_LevelRule):
    """LTD's depth policy (Learning to Draft, arXiv 2603.01639): an MLP over the newest level, depth and context length.

    Published: the 100 scores of the last level's candidates, 1024 hidden units, PPO on (accepted + 1) / time, at most
    12 calls. Here the beam's k scores, the same network, trained by the exact gradient of tokens - rate * time
    (`radar.train.contenders`), up to the tree's max_calls. LTD's second policy, for the number of nodes, is left out.
    """

    def __repr__(self) -> str:
        return "LevelPolicy()"

    def attach(self, signals: RoundSignals) -> None:
        self._signals = signals

    def stop(self, scores: Tensor) -> Tensor:
        return self.logits(scores) > 0
