"""How a stop policy is trained: an objective with its recipe, of which every part can be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from radar.errors import UsageError

__all__ = ["PolicyTraining"]

RECIPES: dict[str, dict[str, Any]] = {
    "ratio": {"estimator": "exact", "entropy": 0.1, "learning_rate": 1e-3, "epochs": 80, "batch_size": 256},
    "paper": {
        **{"estimator": "reinforce", "entropy": 0.0, "learning_rate": 1e-4, "epochs": 100, "batch_size": 64},
        **{"alpha": 0.02, "gamma": 0.99},
    },
}
REWARD = ("alpha", "beta", "gamma")
RANGES: dict[str, tuple[float, float]] = {
    **{"alpha": (0, 1e6), "beta": (0, 1e9), "gamma": (0, 1), "entropy": (0, 1e6), "learning_rate": (1e-9, 10)},
    **{"weight_decay": (0, 10), "dropout": (0, 0.99), "held_out": (1e-6, 1 - 1e-6), "clip_norm": (1e-9, 1e9)},
}
LEAST = {"epochs": 1, "batch_size": 1, "hidden_size": 1, "max_calls": 2}


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """Options of `train_policy`. What is not given is the recipe's of the objective (`RECIPES`), and is never None once
    the object is made.

    Attributes:
        objective: "ratio" (tokens - rate * time, the rate moved to the throughput achieved: what is maximised is tokens
            per time) or "paper" (-alpha per continue, beta * L / T at the stop, gamma; its recipe is the paper's for
            Llama-3-8B, where it states it).
        estimator: "exact" (the expectation of REINFORCE, no sampling noise) or "reinforce" (sampled actions).
        alpha, beta, gamma: of the paper's reward alone. beta None is its 10 * (call + decision), of the mean call.
        entropy: weight of a bonus for undecided actions (mean entropy in nats), falling to 0 over the epochs. The paper
            has none; without it cheap calls can drive a fresh policy into "never stop".
        max_calls: None is what the rounds were recorded with.
        held_out: share of the prompts that choose the checkpoint and give the result.
    """

    objective: str = "ratio"
    estimator: str = None  # type: ignore[assignment]
    alpha: float = None  # type: ignore[assignment]
    beta: float | None = None
    gamma: float = None  # type: ignore[assignment]
    entropy: float = None  # type: ignore[assignment]
    learning_rate: float = None  # type: ignore[assignment]
    weight_decay: float = 1e-4
    dropout: float = 0.1
    epochs: int = None  # type: ignore[assignment]
    batch_size: int = None  # type: ignore[assignment]
    hidden_size: int = 128
    clip_norm: float = 1.0
    max_calls: int | None = None
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        self._one_of("objective", tuple(RECIPES))
        if foreign := [name for name in REWARD if getattr(self, name) is not None and self.objective != "paper"]:
            raise UsageError(
                f"train_policy: {', '.join(foreign)} belong to the paper's reward, and the objective is "
                f'"{self.objective}": leave them out, or choose objective="paper" (--objective paper)'
            )
        for name, value in RECIPES[self.objective].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # what it means from here on, in checkpoints too
        self._one_of("estimator", ("exact", "reinforce"))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"train_policy: {name} must be an integer of {least} or more, got {value!r}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            if value is not None and not fits:
                raise UsageError(f"train_policy: {name} must be from {low:g} to {high:g}, got {value!r}")

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise UsageError(f"train_policy: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
