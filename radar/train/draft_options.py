"""How long and how a draft head is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from radar.errors import UsageError

__all__ = ["TrainingOptions"]


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
        lowest = {"steps": 1, "batch_size": 1, "length": 2, "ttt_length": 1, "warmup": 0, "seed": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if name == "steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise UsageError(f"{name} must be an integer of at least {low}, got {value!r}")
        for name in ("seconds", "lr", "max_grad_norm", "loss_decay"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} must be positive and finite, got {value!r}")
        if not self.checkpoint_every >= 0:
            raise UsageError(f"checkpoint_every must be at least 0 seconds, got {self.checkpoint_every!r}")
