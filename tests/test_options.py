"""Options of policy training: the recipe of each objective, and what is refused."""

import math
from dataclasses import asdict

import pytest

from radar.tools.costs import CostTable
from radar.train.options import PolicyTraining


def test_the_default_is_the_ratio_with_the_exact_gradient() -> None:
    options = PolicyTraining()
    assert (options.objective, options.estimator, options.entropy) == ("ratio", "exact", 0.1)
    assert (options.learning_rate, options.epochs, options.batch_size) == (1e-3, 80, 256)


def test_the_papers_objective_brings_the_papers_settings() -> None:
    options = PolicyTraining(objective="paper")
    assert (options.alpha, options.gamma, options.learning_rate, options.weight_decay) == (0.02, 0.99, 1e-4, 1e-4)
    assert (options.dropout, options.batch_size, options.epochs, options.clip_norm) == (0.1, 64, 100, 1.0)
    assert (options.estimator, options.hidden_size, options.entropy, options.beta) == ("reinforce", 128, 0.0, None)
    paper = CostTable.paper()
    assert 10 * (paper.mean_call_seconds + paper.decision_seconds) == pytest.approx(0.03084)


@pytest.mark.parametrize("objective", ["ratio", "paper"])
def test_what_is_given_stands(objective: str) -> None:
    given = {"estimator": "exact", "entropy": 0.5, "learning_rate": 0.1, "epochs": 3, "batch_size": 7}
    assert asdict(PolicyTraining(objective=objective, **given)).items() >= given.items()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("learning_rate", math.nan),
        ("dropout", 1.0),
        ("held_out", 0.0),
        ("objective", "speed"),
        ("estimator", "ppo"),
        ("max_calls", 1),
        ("hidden_size", True),
        ("entropy", -0.1),
    ],
)
def test_bad_options_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"train_policy: {name} must be"):
        PolicyTraining(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("alpha", -1), ("gamma", 1.1), ("beta", "x")])
def test_the_papers_reward_has_its_options_alone(name: str, value: object) -> None:
    """Whoever sets alpha means the paper's reward: nothing is trained that ignores it."""
    with pytest.raises(ValueError, match=f"train_policy: {name} must be from"):
        PolicyTraining(objective="paper", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"{name} belong to the paper's reward.*--objective paper"):
        PolicyTraining(**{name: 0.5})  # type: ignore[arg-type]
