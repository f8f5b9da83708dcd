"""The paper's prediction model (RADAR, arXiv 2512.14069, section "prediction model"): an LSTM over the beam's scores.

Parameter names are upstream's: its state dicts load strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from radar.errors import UsageError
from radar_kernels import NodeWeights, PolicyWeights

__all__ = ["NODE_NAMES", "SCORE_FLOOR", "STOP_NAMES", "PolicyNetwork"]

SCORE_FLOOR = -100.0
"""Scores below it (a beam with fewer candidates than its width holds -inf) count as it: 0 * inf would be NaN."""

STOP_NAMES = (
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.bias_ih_l0",
    "lstm.bias_hh_l0",
    "mlp.0.weight",
    "mlp.0.bias",
    "mlp.3.weight",
    "mlp.3.bias",
)
NODE_NAMES = ("nodes_head.0.weight", "nodes_head.0.bias", "nodes_head.3.weight", "nodes_head.3.bias")


class PolicyNetwork(nn.Module):
    """LSTM(I -> H); logits = Linear(M -> 2)(dropout(relu(Linear(H + I -> M)([h, scores])))); action 0 = stop.

    Raw cumulative log-probabilities go in, as in the paper's code: no depth, no normalisation, zero state at the root.

    Args:
        input_size: scores of a beam, I.
        hidden_size, mlp_size: H and M.
        nodes: numbers of nodes that it chooses among where it stops, ascending, S of them; the paper's network chooses
            none. A second head, Linear(H + I + S -> M), ReLU, dropout, Linear(M -> S), reads the tree's mass too (see
            `radar_kernels.tree_mass`).
    """

    def __init__(
        self,
        input_size: int = 10,
        hidden_size: int = 128,
        *,
        mlp_size: int = 128,
        dropout: float = 0.1,
        nodes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("mlp_size", mlp_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"PolicyNetwork: {name} must be a positive integer, got {size!r}")
        if not 0.0 <= dropout < 1.0:
            raise UsageError(f"PolicyNetwork: dropout must be from 0 to below 1, got {dropout!r}")
        if not all(isinstance(n, int) and 2 <= n <= 256 for n in nodes) or any(a >= b for a, b in pairwise(nodes)):
            raise UsageError(f"PolicyNetwork: nodes must be ascending integers from 2 to 256, got {nodes!r}")
        self.input_size, self.hidden_size, self.mlp_size = input_size, hidden_size, mlp_size
        self.nodes = tuple(nodes)
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.mlp = self._head(hidden_size + input_size, mlp_size, 2, dropout)
        if nodes:
            self.nodes_head = self._head(hidden_size + input_size + len(nodes), mlp_size, len(nodes), dropout)

    @staticmethod
    def _head(inputs: int, middle: int, outputs: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, middle), nn.ReLU(), nn.Dropout(dropout), nn.Linear(middle, outputs))

    def forward(self, scores: Tensor) -> Tensor:
        """Beam scores of successive levels [N, T, I] -> logits [N, T, 2] of (stop, continue)."""
        logits: Tensor = self.mlp(self._features(scores))
        return logits

    def both(self, scores: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """With the mass of the tree at each level [N, T, S]: `forward`, and the logits [N, T, S] of the numbers of
        nodes, had drafting ended there."""
        features = self._features(scores)
        return self.mlp(features), self.nodes_head(torch.cat((features, mass), dim=-1))

    def _features(self, scores: Tensor) -> Tensor:
        scores = scores.clamp(min=SCORE_FLOOR)
        hidden, _ = self.lstm(scores)
        return torch.cat((hidden, scores), dim=-1)

    def weights(self, device: torch.device | None = None) -> PolicyWeights:
        """Copies of the parameters in float32, in the order of `radar_kernels.lstm_step`."""
        return PolicyWeights(*self._copies(STOP_NAMES, device))

    def node_weights(self, device: torch.device | None = None) -> NodeWeights:
        """The same of the head that chooses nodes, for `radar_kernels.choose_nodes`."""
        return NodeWeights(*self._copies(NODE_NAMES, device))

    def _copies(self, names: Sequence[str], device: torch.device | None) -> list[Tensor]:
        state = self.state_dict()
        return [state[n].detach().to(device=device, dtype=torch.float32, copy=True).contiguous() for n in names]
