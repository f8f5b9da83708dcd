"""One training of a draft head: its steps, its clock, and what it leaves in its folder."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from radar.draft.checkpoint import save_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.train.draft_target import FrozenTarget, weights_digest
from radar.train.interrupts import Interrupts
from radar.train.options import TrainingOptions
from radar.train.run import ANEW, Run
from radar.train.tokens import TokenMixture
from radar.train.unroll import unrolled_losses

__all__ = ["DraftRun"]

RECORD_FILE = "training.json"
HEAD_FILES = ("model.safetensors", "config.json")
FREE = ("steps", "seconds", "compile", "checkpoint_every", "progress", "log_every")  # a continuation may change them
LONG = 1800.0  # seconds that nobody waits for without having been told


class DraftRun(Run):
    """What one training changes.

    Attributes:
        step: optimizer steps done.
        spent: seconds of the budget, which begins behind the first step: that may compile for a minute.
        wall: seconds of all steps.
    """

    KEPT = ("step", "spent", "wall", "mean")

    def __init__(
        self, draft: Eagle3Draft, target: FrozenTarget, text: TokenMixture, folder: Path, options: TrainingOptions
    ) -> None:
        self.draft, self.target, self.text, self.options = draft, target, text, options
        self.cuda = target.device.type == "cuda"
        settings = {key: value for key, value in asdict(options).items() if key not in FREE}
        settings |= {"config": asdict(draft.config), "text": text.fingerprint()}
        settings["target"] = weights_digest(target.model)
        adam: dict[str, Any] = {"lr": options.lr, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": self.cuda}
        super().__init__(folder, settings, draft, torch.optim.AdamW(draft.parameters(), **adam))
        self.record = folder / RECORD_FILE
        self.draft_ids = draft.target_ids().to(target.device)
        self.to_draft = torch.full((draft.config.vocab_size,), -1, device=target.device)
        self.to_draft[self.draft_ids] = torch.arange(len(self.draft_ids), device=target.device)
        self.weights = options.loss_decay ** torch.arange(options.ttt_length, device=target.device)
        self.step, self.spent, self.wall = 0, 0.0, 0.0
        self.saved = -1  # the step of the state on disk
        self.mean: Tensor | None = None  # running mean of (losses, agreement) over about the last 50 steps
        self.compiled = self.cuda if options.compile is None else options.compile
        self.losses = torch.compile(unrolled_losses) if self.compiled else unrolled_losses

    def restore(self) -> dict[str, Any] | None:
        """Take up what is in the folder: the results of a finished head; None if there is something left to train."""
        head = any((self.folder / name).exists() for name in HEAD_FILES)
        if head and not self.record.exists() and not self.checkpoint.exists():
            raise UsageError(f"{self.folder} holds a head whose training left no {RECORD_FILE}: use {ANEW}")
        budget = {"steps": self.options.steps, "seconds": self.options.seconds}
        if self.record.exists():
            done = self.read(self.record, ("asked", "result"))
            if done["asked"] == budget:
                self._say(f"{self.folder} holds the finished head of these settings; more steps or seconds extend it")
                return {**done["result"], "draft": str(self.folder)}
            if not self.checkpoint.exists():
                raise UsageError(
                    f"{self.folder} holds a head of {done['asked']} without {self.checkpoint.name}: use {ANEW}"
                )
        if not self.checkpoint.exists():
            return None
        self.load()
        self.mean = None if self.mean is None else self.mean.to(self.target.device)
        self.saved = self.step
        if self._fraction() > 1 or (self.record.exists() and self._fraction() == 1):
            raise UsageError(
                f"{self.checkpoint} is {self.step} steps, {self.spent:.0f} s old already, and asked for are {budget}: "
                f"ask for more, or use {ANEW}"
            )
        return None

    def save(self) -> None:
        """Write the state, if it is finite."""
        self._means()
        super().save()
        self.saved = self.step

    def _means(self) -> tuple[list[float], list[float]]:
        """Losses and agreement. Raises ValueError unless they and the weights are finite: others must reach no file."""
        assert self.mean is not None
        finite = [values.isfinite().all() for values in (self.mean, *self.draft.parameters())]
        if not torch.stack(finite).all():  # one question to the device
            raise UsageError(f"loss or weights are not finite at step {self.step}: lower lr (now {self.options.lr:g})")
        losses, agreement = self.mean.tolist()
        return losses, agreement

    @staticmethod
    def _say(message: str) -> None:
        tqdm.write(f"train-draft: {message}", file=sys.stderr)

    def _fraction(self) -> float:
        if self.options.steps is not None:
            return self.step / self.options.steps
        assert self.options.seconds is not None
        return self.spent / self.options.seconds

    def warn_of_hours(self) -> None:
        """Without a GPU: say how long the steps will take, from a window or two, if that is long."""
        if self.cuda or self.options.steps is None:
            return
        for _ in range(2):  # the first pays for what is made once
            begun = time.monotonic()
            self._gradients(1, 0.0)
            self.optimizer.zero_grad(set_to_none=True)
            took = (time.monotonic() - begun) * self.options.batch_size
            if took > LONG:
                break
        left = self.options.steps - self.step
        if took * left > LONG:
            self._say(
                f"{left} steps of about {took:.1f} s will take about {_duration(took * left)} on this device. Ctrl-C "
                "stops and keeps what is done; shorter: --seconds, --steps, --batch-size, --length"
            )

    def _gradients(self, rows: int, fraction: float) -> Tensor:
        """Of the step's windows, at most so many: losses and agreement [2, S]. Nothing else changes."""
        options = self.options
        ids = self.text.windows(rows, options.length + options.ttt_length, (options.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (self.step + 1) / (options.warmup + 1)) * max(0.0, 1 - fraction)
        losses, agreement = self._loss(ids.to(self.target.device))
        (losses * self.weights).sum().backward()
        nn.utils.clip_grad_norm_(self.draft.parameters(), options.max_grad_norm)
        return torch.stack((losses.detach(), agreement))

    def _loss(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.cuda):
            aux, embeds, teacher, best = self.target.read(ids, self.options.length, self.draft_ids, self.to_draft)
            dtype = torch.bfloat16 if self.cuda else torch.float32
            inputs = (aux.to(dtype), embeds.to(dtype), teacher, best)
            try:
                return self.losses(self.draft, *inputs, self.options.ttt_length)
            except Exception as error:
                if not self.compiled:
                    raise
                self._say(f"torch.compile failed ({type(error).__name__}), training goes on without it")
                self.losses, self.compiled = unrolled_losses, False
                return self.losses(self.draft, *inputs, self.options.ttt_length)

    def _update(self, now: Tensor) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mean = now if self.mean is None else torch.lerp(self.mean, now, 0.02)
        self.step += 1

    def train(self, interrupts: Interrupts) -> None:
        """All steps that are left. An interruption ends the step, which is begun anew by whoever goes on."""
        options = self.options
        begun, started = None, time.monotonic() - self.wall
        saved = next_log = self.spent
        bar = tqdm(total=options.steps, initial=self.step, disable=not options.progress, unit="step", desc="draft")
        self.draft.train()
        try:
            while (fraction := self._fraction()) < 1:
                now = self._gradients(options.batch_size, fraction)
                with interrupts.held():
                    self._update(now)
                    begun = time.monotonic() - self.spent if begun is None else begun
                    self.spent, self.wall = time.monotonic() - begun, time.monotonic() - started
                bar.update()
                if self.step % 20 == 0:
                    losses, agreement = self._means()  # reading also keeps the host from running ahead of the clock
                    bar.set_postfix(loss=f"{losses[0]:.3f}", agreement=f"{agreement[0]:.3f}..{agreement[-1]:.3f}")
                if options.checkpoint_every and self.spent - saved >= options.checkpoint_every:
                    self.save()
                    saved = self.spent
                if options.log_every and self.spent >= next_log:
                    next_log = self.spent + options.log_every
                    losses, agreement = self._means()
                    shown = [round(value, 3) for value in agreement]
                    self._say(f"step {self.step}, {self.spent:.0f} s, loss {losses[0]:.3f}, agreement {shown}")
        except KeyboardInterrupt:
            self._leave()
            raise
        finally:
            bar.close()

    def _leave(self) -> None:
        """Save, and say how to go on."""
        if self.step == 0:
            self._say("interrupted in the first step: there is nothing to save yet")
            return
        if self.saved != self.step:
            self._say(f"interrupted in step {self.step + 1}: saving the {self.step} before it")
            self.save()
        self._say(f"saved {self.step} steps to {self.checkpoint}; the same command, without --restart, goes on there")

    def finish(self) -> dict[str, Any]:
        """Write the state, the head and its record, each file whole or not at all; returns the results."""
        losses, agreement = self._means()
        result = {
            "steps": self.step,
            "seconds": float(f"{self.wall:.3g}"),
            "loss": [round(value, 4) for value in losses],
            "agreement": [round(value, 4) for value in agreement],
            "tokens": self.step * self.options.batch_size * self.options.length,
            "draft": str(self.folder),
        }
        if self.saved != self.step:
            self.save()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".head-") as place:
            written = Path(place)
            save_draft(self.draft, written)
            asked = {"steps": self.options.steps, "seconds": self.options.seconds}
            record = {"settings": self.settings, "asked": asked, "result": result}
            (written / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
            self.record.unlink(missing_ok=True)  # of the head that is replaced: it must never stand beside this one
            for name in (*HEAD_FILES, RECORD_FILE):
                os.replace(written / name, self.folder / name)
        return result


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"
