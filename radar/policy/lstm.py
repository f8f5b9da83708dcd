"""The paper's stop policy (RADAR, arXiv 2512.14069): serves a trained network through the stop-policy protocol."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.errors import UsageError
from radar.policy.base import Settled
from radar.policy.network import SCORE_FLOOR, PolicyNetwork
from radar.policy.network_files import load_policy
from radar_kernels import choose_nodes, lstm_step

__all__ = ["RadarPolicy"]


class RadarPolicy(Settled):
    """Serves a trained network: one `lstm_step` a draft call on static state, nothing asked of the host.

    Args:
        network: the network, or the path of one (see `load_policy`). Its weights are copied by `bind`: after more
            training, make another policy.
        sample: False stops where P(stop) > 1/2. True draws the action, as the paper's code does: the uniform numbers of
            a round are drawn together at `reset`, so that the body of a device-side loop holds no random op. Inside a
            captured graph `generator` has to be registered (`graph.register_generator_state`).
        seed: of the draws. `bind` seeds anew, so two equal runs make equal decisions.
    """

    _generator: torch.Generator | None = None

    def __init__(self, network: PolicyNetwork | str | os.PathLike[str], *, sample: bool = False, seed: int = 0) -> None:
        self.network = network if isinstance(network, PolicyNetwork) else load_policy(network)
        self.sample, self.seed = sample, seed

    @property
    def nodes(self) -> tuple[int, ...]:
        """See `NodePolicy`; empty: it leaves them to the tree."""
        return self.network.nodes

    def __repr__(self) -> str:
        net = self.network
        drawn = f", sample=True, seed={self.seed}" if self.sample else ""
        among = f", nodes={list(net.nodes)}" if net.nodes else ""
        return f"RadarPolicy(input_size={net.input_size}, hidden_size={net.hidden_size}{among}{drawn})"

    @property
    def generator(self) -> torch.Generator | None:
        """What `sample` draws from, once bound."""
        return self._generator

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        width = self.network.input_size
        if tree.tree_top_k != width:
            raise UsageError(
                f"this policy reads {width} scores a level, but the tree has tree_top_k={tree.tree_top_k}: "
                f"use TreeConfig(tree_top_k={width}) or train a policy for {tree.tree_top_k}"
            )
        self._weights = self.network.weights(device)
        self._state = torch.zeros(2, batch_size, self.network.hidden_size, device=device)
        if self.nodes:
            self._node_weights = self.network.node_weights(device)
        if self.sample:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            self._draws = torch.zeros(tree.max_calls, batch_size, device=device)
            self._call = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        self._state.zero_()
        if self.sample:
            self._draws.uniform_(generator=self._generator)
            self._call.zero_()

    def stop(self, scores: Tensor) -> Tensor:
        """Scores [B, I] -> P(stop) above 1/2, or above this call's uniform number [B] bool."""
        threshold = None
        if self.sample:
            threshold = self._draws.index_select(0, self._call).squeeze(0)
            self._call.add_(1).remainder_(self._draws.shape[0])
        hidden, cell = self._state
        self._scores = scores
        return lstm_step(scores, hidden, cell, self._weights, threshold=threshold, floor=SCORE_FLOOR, update=True).stop

    def choose(self, mass: Tensor) -> Tensor:
        """See `NodePolicy`."""
        return choose_nodes(self._state[0], self._scores, mass, self._node_weights, floor=SCORE_FLOOR).chosen
