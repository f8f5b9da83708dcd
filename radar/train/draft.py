"""Train an EAGLE-3 draft head on a target's own predictions: resumable, by steps or by the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.files import replacing
from radar.target.digest import weights_digest
from radar.tools.interrupts import Interrupts, interruptible
from radar.train.draft_target import FrozenTarget, new_draft
from radar.train.options import TrainingOptions
from radar.train.run import ANEW, Run
from radar.train.tokens import TokenMixture
from radar.train.unroll import play_step, unrolled_losses

__all__ = ["DraftRun", "TrainingOptions", "train_draft"]

RECORD_FILE = "training.json"
HEAD_FILES = ("model.safetensors", "config.json")
FREE = ("steps", "seconds", "whole_seconds", "compile", "checkpoint_every", "progress")  # a continuation's own
LONG = 1800.0  # seconds that nobody waits for without having been told


def train_draft(
    model: nn.Module,
    text: TokenMixture,
    out: str | os.PathLike[str],
    *,
    config: DraftConfig,
    options: TrainingOptions,
    tap_layers: Sequence[int] | None = None,
    resume: bool = True,
) -> dict[str, Any]:
    """Train a draft head for `model` on `text` and write it to the folder `out`.

    The target is left as it is, in its own precision; the head's weights are fp32, its arithmetic bf16 on a GPU.
    `out/training.pt` holds the state to go on from, of an interrupted run and of a finished one, which the same call
    with more steps or seconds extends; without it the head can be used, not extended. `out/training.json` holds the
    settings and results of a finished head: the same call then returns those results. Ctrl-C and SIGTERM end the step
    at once and save the state; pressed once more while that is written, the state before stays.

    Args:
        model: a causal language model with transformers' interface (`get_decoder`, `get_input_embeddings`, ...).
        text: what to train on; text that the target wrote itself gives the longest acceptance.
        out: folder of the result, `config.json` and `model.safetensors`.
        config: geometry of the head; its hidden size must equal the target's.
        options: see `TrainingOptions`.
        tap_layers: hidden-state indices that the head reads, [2, N // 2, N - 3] by default; config.json names them.
        resume: go on from, or return, what is in `out`. False begins anew and overwrites it.

    Returns:
        steps, seconds (of all of them, compiling included), loss, agreement of every step, tokens seen: JSON types.

    Raises:
        ValueError: parts that do not fit together; a head or a checkpoint in `out` of other settings or data, or of
            more steps than are asked for; a loss or weights that are not finite, which are never written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    target = FrozenTarget(model, tap_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        draft = new_draft(target, config, text, options)
    run = DraftRun(draft, target, text, folder, options)
    if not resume:
        run.checkpoint.unlink(missing_ok=True)
    elif result := run.restore():
        return result
    with interruptible() as interrupts:
        run.train(interrupts)
        with interrupts.held():
            return run.finish()


class DraftRun(Run):
    """What one training changes.

    Attributes:
        step: optimizer steps done.
        spent: seconds of the budget, which begins behind the first step: that may compile for long.
        wall: seconds of all steps.
        mean: running mean of (losses, agreement) [2, S] over about the last 50 steps; None before the first.
    """

    KEPT = ("step", "spent", "wall", "mean")

    def __init__(
        self, draft: Eagle3Draft, target: FrozenTarget, text: TokenMixture, folder: Path, options: TrainingOptions
    ) -> None:
        self.draft, self.target, self.text, self.options = draft, target, text, options
        self.cuda = target.device.type == "cuda"
        settings = {key: value for key, value in asdict(options).items() if key not in FREE}
        settings |= {"config": asdict(draft.config), "text": text.fingerprint(), "target": weights_digest(target.model)}
        adam: dict[str, Any] = {"lr": options.lr, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": self.cuda}
        super().__init__(folder, settings, draft, torch.optim.AdamW(draft.parameters(), **adam))
        self.record = folder / RECORD_FILE
        self.asked = {"steps": options.steps, "seconds": options.seconds}
        self.draft_ids = draft.target_ids().to(target.device)
        self.to_draft = torch.full((draft.config.vocab_size,), -1, device=target.device)
        self.to_draft[self.draft_ids] = torch.arange(len(self.draft_ids), device=target.device)
        self.weights = options.loss_decay ** torch.arange(options.ttt_length, device=target.device)
        self.step, self.spent, self.wall = 0, 0.0, 0.0
        self.saved = -1  # the step of the state on disk
        self.mean: Tensor | None = None
        compiled = self.cuda if options.compile is None else options.compile
        self.play = torch.compile(play_step, dynamic=False) if compiled else play_step

    def restore(self) -> dict[str, Any] | None:
        """Take up what is in the folder: the results of a finished head; None if there is something left to train."""
        finished = self.record.exists()
        if finished:
            done = self.read(self.record, ("asked", "result"))
            if done["asked"] == self.asked:
                self._say(f"{self.folder} holds the finished head of these settings; more steps or seconds extend it")
                return {**done["result"], "draft": str(self.folder)}
        if self.checkpoint.exists():
            self.load()
            self.mean = None if self.mean is None else self.mean.to(self.target.device)
            self.saved = self.step
            if self._fraction() > 1 or (finished and self._fraction() == 1):
                raise UsageError(
                    f"{self.checkpoint} is {self.step} steps, {self.spent:.0f} s old already, and asked for are "
                    f"{self.asked}: ask for more, or use {ANEW}"
                )
        elif finished or any((self.folder / name).exists() for name in HEAD_FILES):
            raise UsageError(f"{self.folder} holds a head without {self.checkpoint.name} to go on from: use {ANEW}")
        return None

    def save(self) -> None:
        """Write the state, if it is finite and not on disk."""
        self._means()
        if self.saved != self.step:
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

    def _gradients(self, fraction: float) -> Tensor:
        """Of the step's windows: losses and agreement [2, S]. Nothing else changes."""
        options = self.options
        ids = self.text.windows(options.batch_size, options.length + options.ttt_length, (options.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (self.step + 1) / (options.warmup + 1)) * max(0.0, 1 - fraction)
        return self._backward(ids.to(self.target.device))

    def _backward(self, ids: Tensor) -> Tensor:
        try:
            with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.cuda):
                aux, embeds, teacher, best = self.target.read(ids, self.options.length, self.draft_ids, self.to_draft)
                dtype = torch.bfloat16 if self.cuda else torch.float32
                inputs = (self.draft, aux.to(dtype), embeds.to(dtype), teacher, best, self.options.ttt_length)
                now = unrolled_losses(*inputs, self.play)
            (now[0] * self.weights).sum().backward()
            return now.detach()
        except Exception as error:  # of the backward graph too, which is compiled when it is needed
            if self.play is play_step:
                raise
            self._say(f"torch.compile failed ({type(error).__name__}), training goes on without it")
        self.play = play_step  # no gradient is left behind: autograd adds to a weight's once all steps have theirs
        return self._backward(ids)

    def _update(self, now: Tensor) -> None:
        nn.utils.clip_grad_norm_(self.draft.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mean = now if self.mean is None else torch.lerp(self.mean, now, 0.02)
        self.step += 1

    def train(self, interrupts: Interrupts) -> None:
        """All steps that are left. An interruption ends the step, which is begun anew by whoever goes on."""
        options, first = self.options, self.step
        started, saved = time.monotonic() - self.wall, self.spent
        begun = time.monotonic() - self.spent if options.whole_seconds else None
        bar = tqdm(total=options.steps, initial=first, disable=not options.progress, unit="step", desc="draft")
        self.draft.train()
        try:
            while (fraction := self._fraction()) < 1:
                now = self._gradients(fraction)
                with interrupts.held():
                    self._update(now)
                    begun = time.monotonic() - self.spent if begun is None else begun
                    self.spent, self.wall = time.monotonic() - begun, time.monotonic() - started
                bar.update()
                if self.step == first + 1:
                    self._warn_of_hours()
                if self.step % 20 == 0:
                    losses, agreement = self._means()  # reading also keeps the host from running ahead of the clock
                    bar.set_postfix(loss=f"{losses[0]:.3f}", agreement=f"{agreement[0]:.3f}..{agreement[-1]:.3f}")
                if options.checkpoint_every and self.spent - saved >= options.checkpoint_every:
                    self.save()
                    saved = self.spent
        except KeyboardInterrupt:
            self._leave()
            raise
        finally:
            bar.close()

    def _warn_of_hours(self) -> None:
        """Without a GPU: say how long the steps that are left will take, if that is long."""
        left, took = (self.options.steps or 0) - self.step, self.wall / self.step
        if not self.cuda and left * took > LONG:
            self._say(
                f"{left} steps of about {took:.1f} s will take about {left * took / 3600:.1f} hours on this device. "
                "Ctrl-C stops and keeps what is done; shorter: --seconds, --steps, --batch-size, --length"
            )

    def _leave(self) -> None:
        """Save, and say how to go on."""
        if self.step == 0:
            self._say("interrupted in the first step: there is nothing to save yet")
            return
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
        self.save()
        with replacing(self.folder) as place:  # the record is the last by name: it never stands beside another head
            save_draft(self.draft, place)
            record = {"settings": self.settings, "asked": self.asked, "result": result}
            (place / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
            self.record.unlink(missing_ok=True)
        return result
