"""How draft heads and stop policies are trained: options, checked where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from radar.config import check_int
from radar.errors import UsageError

__all__ = ["PolicyTraining", "TrainingOptions"]

RECIPES: dict[str, dict[str, Any]] = {
    "ratio": {"estimator": "exact", "entropy": 0.1, "learning_rate": 1e-3, "epochs": 80, "batch_size": 256},
    "paper": {
        **{"estimator": "reinforce", "entropy": 0.0, "learning_rate": 1e-4, "epochs": 100, "batch_size": 64},
        **{"alpha": 0.02, "gamma": 0.99},
    },
}
REWARD = ("alpha", "beta", "gamma")
TINY, MOST = 1e-9, 2**31
Ranges = dict[str, tuple[float, float]]
DRAFT_RANGES: Ranges = {
    **{"steps": (1, MOST), "batch_size": (1, MOST), "length": (2, MOST), "ttt_length": (1, MOST), "warmup": (0, MOST)},
    **{"seed": (0, MOST), "seconds": (TINY, 1e9), "lr": (TINY, 1e38), "max_grad_norm": (TINY, 1e9)},
    **{"loss_decay": (TINY, 1e9), "checkpoint_every": (0.0, math.inf)},
}
POLICY_RANGES: Ranges = {
    **{"epochs": (1, MOST), "batch_size": (1, MOST), "hidden_size": (1, MOST), "max_calls": (2, MOST)},
    **{"alpha": (0.0, 1e6), "beta": (0.0, 1e9), "gamma": (0.0, 1.0), "entropy": (0.0, 1e6)},
    **{"learning_rate": (TINY, 10), "weight_decay": (0.0, 10), "dropout": (0.0, 0.99), "held_out": (1e-6, 1 - 1e-6)},
    **{"clip_norm": (TINY, 1e9)},
}


def _check(owner: str, options: object, ranges: Ranges) -> None:
    """Every option is in its range, or None where that is its default; a whole lower end asks for whole numbers."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is None and getattr(type(options), name) is None:
            continue
        if isinstance(low, int):
            check_int(owner, name, value, low, int(high))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(f"{owner}: {name} must be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how to train; exactly one of `steps` and `seconds`.

    Attributes:
        steps: optimizer steps.
        seconds: wall-clock budget from the end of the first step on, which compiles; the learning rate follows that
            clock.
        batch_size: windows per step.
        length: positions per window that are trained on.
        lr: peak learning rate; linear warm-up over `warmup` steps, then linear decay to nothing.
        ttt_length: draft calls that training plays.
        loss_decay: weight of step s is loss_decay ** s.
        compile: `torch.compile` the unrolled loss; None means on a GPU. Falls back to eager execution with a note.
        checkpoint_every: seconds between resumable checkpoints; 0: only Ctrl-C leaves one.
        progress: show a bar on stderr.
        log_every: seconds between lines on stderr, for logs in which a bar is noise; 0 means none.
    """

    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 8
    length: int = 512
    lr: float = 5e-4
    warmup: int = 100
    max_grad_norm: float = 0.5
    seed: int = 0
    ttt_length: int = 7
    loss_decay: float = 0.8
    compile: bool | None = None
    checkpoint_every: float = 60.0
    progress: bool = True
    log_every: float = 0.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UsageError(f"give exactly one of steps and seconds, got steps={self.steps}, seconds={self.seconds}")
        _check("train_draft", self, DRAFT_RANGES)


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
        _check("train_policy", self, POLICY_RANGES)

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise UsageError(f"train_policy: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
