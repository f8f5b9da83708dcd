"""Returns against the paper's rules written as loops; REINFORCE against its expectation, and against planted errors."""

import itertools

import pytest
import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.tools.costs import CostTable
from radar.train.objectives import (
    decision_entropy,
    exact_loss,
    paper_returns,
    ratio_returns,
    reinforce_loss,
    stop_probabilities,
)

CALL, DECISION, REST = 0.3, 0.05, 2.0


def make_times(rest: float = REST) -> Tensor:
    """[3, 4] seconds of rounds with 1 to 4 calls."""
    costs = CostTable.constant(call=CALL, decision=DECISION, rest=rest)
    return costs.times(TreeConfig(max_calls=4), torch.zeros(3))


PAPER = {"alpha": 0.07, "beta": 3.0, "gamma": 0.8}
LENGTHS = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 1, 1]])
Z_LIMIT = 5.0
"""Two-sided normal tail 5.7e-7: over the 18 compared components a correct estimator fails with probability 1e-5."""


def make_logits(seed: int = 0) -> Tensor:
    return torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(seed))


def returns_by_loops(lengths: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    rounds, calls = lengths.shape
    out = torch.zeros(rounds, calls, calls - 1)
    for n, k in itertools.product(range(rounds), range(calls)):
        time = REST + CALL * (k + 1) + DECISION * min(k + 1, calls - 1)
        rewards = [-alpha] * k + [
            beta * lengths[n, k].item() / time
        ]  # rewards of decisions 0 to k; k may be the forced stop
        for t in range(min(k + 1, calls - 1)):
            out[n, k, t] = sum(gamma ** (j - t) * rewards[j] for j in range(t, k + 1))
    return out


def test_paper_returns_follow_the_rules() -> None:
    torch.testing.assert_close(paper_returns(LENGTHS, make_times(), **PAPER), returns_by_loops(LENGTHS, **PAPER))


def test_ratio_returns_are_gains_over_stopping_at_once() -> None:
    returns = ratio_returns(LENGTHS, make_times(), rate=0.4)
    times = make_times()
    for n, k, t in itertools.product(range(3), range(4), range(3)):
        gain = (LENGTHS[n, k] - LENGTHS[n, t]) - 0.4 * (times[n, k] - times[n, t]) if t <= k else torch.tensor(0.0)
        assert returns[n, k, t].item() == pytest.approx(gain.item(), abs=1e-6)


def test_stop_probabilities_sum_to_one() -> None:
    logits = make_logits() * 20
    probabilities = stop_probabilities(logits)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    stop = logits.softmax(-1)[..., 0]
    torch.testing.assert_close(probabilities[:, 1], (1 - stop[:, 0]) * stop[:, 1], atol=1e-6, rtol=1e-4)


def test_exact_loss_is_the_sum_over_all_actions() -> None:
    """Value and gradient of the expectation of REINFORCE's loss, by enumerating the 2^3 action sequences."""
    logits = make_logits().requires_grad_()
    returns = returns_by_loops(LENGTHS, **PAPER)
    log_probs = logits.log_softmax(-1)
    brute = torch.zeros(())
    for actions in itertools.product((0, 1), repeat=3):  # 0 = stop
        k = actions.index(0) if 0 in actions else 3
        log_action = torch.stack([log_probs[:, t, a] for t, a in enumerate(actions)], 1)
        probability = log_action.sum(1).exp().detach()
        brute = brute - (probability[:, None] * log_action * returns[:, k]).mean()
    loss = exact_loss(logits, paper_returns(LENGTHS, make_times(), **PAPER))
    torch.testing.assert_close(loss, brute)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, brute)))


@pytest.mark.parametrize("objective", ["paper", "ratio"])
def test_exact_gradient_is_that_of_the_objective(objective: str) -> None:
    """Undiscounted, the surrogate's gradient is the gradient of the expected return itself."""
    logits = make_logits(1).requires_grad_()
    times = make_times()
    if objective == "paper":
        returns = paper_returns(LENGTHS, make_times(), alpha=0.07, beta=3.0, gamma=1.0)
        value = (3.0 * LENGTHS / times - 0.07 * torch.arange(4)).float()
    else:
        returns = ratio_returns(LENGTHS, make_times(), rate=0.4)
        value = (LENGTHS - 0.4 * times).float()
    loss = -(stop_probabilities(logits) * value).sum(1).mean() / 3  # 3 decisions: the losses are means over them
    torch.testing.assert_close(
        torch.autograd.grad(exact_loss(logits, returns), logits)[0], torch.autograd.grad(loss, logits)[0]
    )


def z_scores(sampled: Tensor, claimed: Tensor) -> Tensor:
    """REINFORCE's mean gradient with `sampled` returns minus the exact one with `claimed`, in standard errors."""
    logits, copies = make_logits(2), 40_000
    many = logits.repeat(copies, 1, 1).requires_grad_()
    loss = reinforce_loss(many, sampled.repeat(copies, 1, 1), generator=torch.Generator().manual_seed(3))
    (grad,) = torch.autograd.grad(loss, many)
    single = grad.view(copies, *logits.shape) * copies  # one gradient per copy
    leaf = logits.clone().requires_grad_()
    (exact,) = torch.autograd.grad(exact_loss(leaf, claimed), leaf)
    error = (single.var(0) / copies).sqrt()
    return ((single.mean(0) - exact).abs() / error.clamp(min=1e-12))[error > 0]


def test_reinforce_gradient_is_unbiased() -> None:
    returns = paper_returns(LENGTHS, make_times(), **PAPER)
    assert z_scores(returns, returns).max() < Z_LIMIT


@pytest.mark.parametrize(
    "planted", ["gamma dropped", "alpha dropped", "time of the next stop", "no return at the forced stop"]
)
def test_the_same_check_finds_planted_errors(planted: str) -> None:
    right = paper_returns(LENGTHS, make_times(), **PAPER)
    wrong = {
        "gamma dropped": paper_returns(LENGTHS, make_times(), **(PAPER | {"gamma": 1.0})),
        "alpha dropped": paper_returns(LENGTHS, make_times(), **(PAPER | {"alpha": 0.0})),
        "time of the next stop": paper_returns(LENGTHS, make_times(rest=2.3), **PAPER),
        "no return at the forced stop": right * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None],
    }[planted]
    assert z_scores(wrong, right).max() > Z_LIMIT


def test_entropy() -> None:
    assert decision_entropy(torch.zeros(2, 3, 2)).item() == pytest.approx(0.6931472)
    assert decision_entropy(torch.tensor([[[100.0, 0.0]]])).item() == pytest.approx(0.0)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    returns = paper_returns(LENGTHS, make_times(), **PAPER)
    for loss in (exact_loss, reinforce_loss):
        with pytest.raises(RuntimeError, match="must match the size"):
            loss(torch.zeros(3, 4, 2), returns)
