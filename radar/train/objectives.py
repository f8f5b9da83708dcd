"""What a stop policy is trained for: returns for every possible stop, and two estimators of their gradient.

A round of at most T draft calls holds T - 1 decisions; after call T it stops anyway. Stops are counted from 0 here:
stop k means k + 1 draft calls. `returns[n, k, t]` is the return-to-go G_t of decision t if round n stops at k, and
both estimators read only that tensor and the logits, so objective and estimator combine freely.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    *("choice_entropy", "decision_entropy", "exact_loss", "joint_loss", "paper_returns", "ratio_returns"),
    *("reinforce_loss", "stop_probabilities"),
]


def paper_returns(accept_lengths: Tensor, times: Tensor, *, alpha: float, beta: float, gamma: float) -> Tensor:
    """The paper's reward: -alpha for every continue, beta * L / T at the stop, discounted by gamma per decision.

    L excludes the bonus token. A round that never stops gets its last reward one decision after the last one, as in the
    paper's code (`make_g_matrix`). Decisions after the stop get 0.

    Args:
        accept_lengths: [N, T] accepted draft tokens, or their expectation, if the round stops after call 1 to T.
        times: [N, T] seconds of those rounds.

    Returns:
        [N, T, T - 1] float32, [n, k, t].
    """
    rounds, calls = accept_lengths.shape
    final = beta * accept_lengths.float() / times.float()  # [N, T]
    returns = torch.zeros(rounds, calls, calls)
    steps = torch.arange(calls)
    returns[:, steps, steps] = final
    for step in range(calls - 2, -1, -1):  # stops after `step` continued there
        returns[:, step + 1 :, step] = gamma * returns[:, step + 1 :, step + 1] - alpha
    return returns[:, :, :-1].contiguous()


def ratio_returns(accept_lengths: Tensor, times: Tensor, *, rate: float) -> Tensor:
    """Dinkelbach's objective: tokens - rate * time; at rate = E[tokens] / E[time] its ascent is that of throughput.

    Measured against stopping at once: G_t(k) = (L_k - L_t) - rate * (T_k - T_t). What is subtracted does not depend on
    the action, so the gradient is the same and its variance smaller; the bonus token cancels here, it counts in `rate`.
    """
    calls = accept_lengths.shape[1]
    value = (accept_lengths - rate * times).float()  # [N, T]
    returns = value[:, :, None] - value[:, None, :-1]
    return returns * torch.ones(calls, calls - 1).tril()  # decision t belongs to stops k >= t


def stop_probabilities(logits: Tensor) -> Tensor:
    """Logits of the decisions [N, T - 1, 2] -> probability of each stop [N, T]; the last one is forced."""
    log_stop, log_go = logits.log_softmax(-1).unbind(-1)
    alive = torch.cat((torch.zeros_like(log_go[:, :1]), log_go.cumsum(1)), 1)  # [N, T] log P(reached)
    return (alive + torch.nn.functional.pad(log_stop, (0, 1))).exp()


def decision_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the decisions in nats, [N, T - 1, 2] -> scalar: log 2 when undecided, 0 when certain."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def reinforce_loss(logits: Tensor, returns: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """REINFORCE with sampled actions: -mean over N x (T - 1) of log pi(a_t) G_t(k), k the first sampled stop.

    Args:
        logits: [N, T - 1, 2], action 0 = stop.
        returns: [N, T, T - 1].
    """
    log_probs = logits.log_softmax(-1)
    draws = torch.rand(logits.shape[:2], generator=generator, device=logits.device)
    stops = draws < log_probs[..., 0].detach().exp()  # [N, T - 1]
    index = torch.nn.functional.pad(stops, (0, 1), value=True).int().argmax(1)  # first stop, or the forced one
    picked = returns[torch.arange(len(index), device=index.device), index]  # [N, T - 1], 0 after the stop
    log_action = torch.where(stops, log_probs[..., 0], log_probs[..., 1])
    return -(log_action * picked).mean()


def exact_loss(logits: Tensor, returns: Tensor) -> Tensor:
    """The expectation of `reinforce_loss` over the actions: every stop, weighted by its probability (held constant).

    Its value and its gradient are the means of REINFORCE's; the variance is zero. Like that loss it falls when the
    policy becomes certain, whatever it is certain of: never choose a checkpoint by it.
    """
    log_stop, log_go = logits.log_softmax(-1).unbind(-1)
    weight = stop_probabilities(logits).detach()[:, :, None] * returns  # [N, T, T - 1]
    at_stop = weight.diagonal(dim1=1, dim2=2)  # [N, T - 1]: decision k of stop k is the stop itself
    return -(log_stop * at_stop + log_go * (weight.sum(1) - at_stop)).mean()


def joint_loss(logits: Tensor, node_logits: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Minus the expected value of a round over all its ends, per decision as in `exact_loss`; its gradient is exact.

    Args:
        logits: [N, T - 1, 2], action 0 = stop.
        node_logits: [N, T, S] of the numbers of nodes, had drafting ended after call 1 to T.
        value: [N, T, S] of each end, tokens - rate * time for instance; whatever does not depend on the end cancels.
        weight: [N] of each round.
    """
    value = value - value.mean((1, 2), keepdim=True)  # small numbers round less
    at_stop = (node_logits.softmax(-1) * value).sum(-1)
    expected = (stop_probabilities(logits) * at_stop).sum(1)
    return -(expected * weight).sum() / weight.sum() / logits.shape[1]


def choice_entropy(logits: Tensor, node_logits: Tensor) -> Tensor:
    """Mean entropy of the choice of nodes in nats, weighted by where drafting ends; shapes as for `joint_loss`."""
    log_probs = node_logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return (stop_probabilities(logits).detach() * entropy).sum(1).mean()
