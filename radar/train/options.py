"""How draft heads and stop policies are trained: options, checked where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
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


def _within(low: float, high: float, default: object = None) -> Any:
    """A number in this range, a whole one if the lower end is; None only where that is the default."""
    return field(default=default, metadata={"range": (low, high)})


def _among(default: object, *allowed: str) -> Any:
    return field(default=default, metadata={"among": allowed})


def _check(owner: str, options: Any) -> None:
    for one in fields(options):
        value, (low, high) = getattr(options, one.name), one.metadata.get("range", (None, None))
        if (allowed := one.metadata.get("among")) and value not in allowed:
            raise UsageError(f"{owner}: {one.name} must be one of {', '.join(allowed)}, got {value!r}")
        if low is None or value is one.default is None:
            continue
        if isinstance(low, int):
            check_int(owner, one.name, value, low, high)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(f"{owner}: {one.name} must be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how to train; exactly one of `steps` and `seconds`.

    Attributes:
        steps: optimizer steps.
        seconds: wall-clock budget from the end of the first step on, which compiles; the learning rate follows that
            clock.
        whole_seconds: let the budget begin with the call, so that compiling is paid from it.
        batch_size: windows per step.
        length: positions per window that are trained on.
        lr: peak learning rate; linear warm-up over `warmup` steps, then linear decay to nothing.
        ttt_length: draft calls that training plays.
        loss_decay: weight of step s is loss_decay ** s.
        compile: `torch.compile` a step of the test; None means on a GPU. Falls back to eager execution with a note.
        checkpoint_every: seconds between resumable checkpoints; 0: only Ctrl-C leaves one.
        progress: show a bar on stderr.
    """

    steps: int | None = _within(1, MOST)
    seconds: float | None = _within(TINY, 1e9)
    whole_seconds: bool = False
    batch_size: int = _within(1, MOST, 8)
    length: int = _within(2, MOST, 512)
    lr: float = _within(TINY, 1e38, 5e-4)
    warmup: int = _within(0, MOST, 100)
    max_grad_norm: float = _within(TINY, 1e9, 0.5)
    seed: int = _within(0, MOST, 0)
    ttt_length: int = _within(1, MOST, 7)
    loss_decay: float = _within(TINY, 1e9, 0.8)
    compile: bool | None = None
    checkpoint_every: float = _within(0.0, math.inf, 60.0)
    progress: bool = True

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UsageError(f"give exactly one of steps and seconds, got steps={self.steps}, seconds={self.seconds}")
        _check("train_draft", self)


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
        nodes: numbers of nodes that the policy chooses among where it stops, of those recorded; one: it always verifies
            so many. None: with the objective "ratio" and the exact estimator all that were recorded and that no larger
            number undercuts by the costs, else the tree's.
        held_out: share of the prompts that choose the checkpoint and give the result.
    """

    objective: str = _among("ratio", *RECIPES)
    estimator: str = _among(None, "exact", "reinforce")
    alpha: float = _within(0.0, 1e6)
    beta: float | None = _within(0.0, 1e9)
    gamma: float = _within(0.0, 1.0)
    entropy: float = _within(0.0, 1e6)
    learning_rate: float = _within(TINY, 10.0)
    weight_decay: float = _within(0.0, 10.0, 1e-4)
    dropout: float = _within(0.0, 0.99, 0.1)
    epochs: int = _within(1, MOST)
    batch_size: int = _within(1, MOST)
    hidden_size: int = _within(1, MOST, 128)
    clip_norm: float = _within(TINY, 1e9, 1.0)
    max_calls: int | None = _within(2, MOST)
    nodes: tuple[int, ...] | None = None
    held_out: float = _within(1e-6, 1 - 1e-6, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        if foreign := [name for name in REWARD if getattr(self, name) is not None and self.objective == "ratio"]:
            raise UsageError(
                f"train_policy: {', '.join(foreign)} belong to the paper's reward, and the objective is "
                '"ratio": leave them out, or choose objective="paper" (--objective paper)'
            )
        for name, value in RECIPES.get(self.objective, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # what it means from here on, in checkpoints too
        _check("train_policy", self)
        if self.nodes is not None:
            object.__setattr__(self, "nodes", tuple(self.nodes))
            if list(self.nodes) != sorted(set(self.nodes)) or not self.nodes:
                raise UsageError(f"train_policy: nodes must be ascending numbers, got {self.nodes!r}")
            if len(self.nodes) > 1 and (self.objective, self.estimator) != ("ratio", "exact"):
                raise UsageError(
                    'train_policy: a choice of nodes is learned with objective="ratio" and estimator="exact" alone: '
                    "give one number of nodes, or leave nodes out"
                )
