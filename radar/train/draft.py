"""Train an EAGLE-3 draft head on a target's own predictions: resumable, by steps or by the clock."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.target.bound import Taps
from radar.target.model import resolve_tap_layers
from radar.train.draft_options import TrainingOptions
from radar.train.interrupts import held_interrupts
from radar.train.tokens import TokenMixture
from radar.train.unroll import unrolled_losses

__all__ = ["TrainingOptions", "train_draft"]

STATE_FILE, RECORD_FILE = "training.pt", "training.json"
HEAD_FILES = ("model.safetensors", "config.json")
FREE = ("compile", "checkpoint_every", "progress", "log_every")  # may differ between a run and its continuation
ANEW = "another folder, or resume=False (--restart) to begin anew"


class _Target:
    """A frozen target and its taps."""

    def __init__(self, model: Any, tap_layers: Sequence[int] | None, device: torch.device) -> None:
        self.model = model.eval()
        self.device = device
        self.embed: nn.Module = model.get_input_embeddings()
        decoder = model.get_decoder()
        self.taps = resolve_tap_layers(len(decoder.layers), tap_layers)
        self._hooks = Taps(decoder, self.taps)

    @torch.no_grad()
    def read(
        self, ids: Tensor, rows: int, draft_ids: Tensor, to_draft: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids [B, T + S] -> (aux, embeds, teacher, best) as `unrolled_losses` takes them."""
        with self._hooks.listening():
            logits = self.model(input_ids=ids, use_cache=False).logits[:, 1:]
        taps = self._hooks.collect()  # before the embedding runs again, which may be a tap itself
        assert taps is not None
        return taps[:, :rows], self.embed(ids[:, 1:]), logits.index_select(-1, draft_ids), to_draft[logits.argmax(-1)]

    def fingerprint(self) -> str:
        """Short hash of the first values of every tensor: all of a large model would take minutes."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            first = tensor.flatten()[:64].cpu().contiguous().view(torch.uint8).numpy()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + first.tobytes())
        return digest.hexdigest()[:16]


def _new_draft(model: nn.Module, config: DraftConfig, text: TokenMixture, eos: Sequence[int]) -> Eagle3Draft:
    """A fresh head: the most frequent tokens (and every end token) as vocabulary, the target's rows as lm_head."""
    draft = Eagle3Draft(config)
    frequency = torch.from_numpy(text.frequencies(config.vocab_size))
    if config.draft_vocab_size < config.vocab_size:
        frequency[[token for token in eos if 0 <= token < config.vocab_size]] = math.inf
        # stable: ties go to the smaller id on every machine
        order = torch.argsort(frequency, descending=True, stable=True)
        draft.set_draft_vocabulary(order[: config.draft_vocab_size].sort().values)
    rows = model.get_output_embeddings().weight.detach()  # type: ignore[operator]
    if rows.shape[1] == config.hidden_size:
        ids = draft.d2t.cpu() + torch.arange(config.draft_vocab_size)
        draft.lm_head.weight.data.copy_(rows[ids.to(rows.device)])
    return draft


def _eos_ids(model: nn.Module) -> list[int]:
    for owner in (getattr(model, "generation_config", None), model.config):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            return [value] if isinstance(value, int) else list(value)
    return []


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

    The target is left as it is, in its own precision; the head's weights are fp32, its arithmetic bf16 on a GPU. While
    training runs, `out/training.pt` holds a checkpoint, from which the same call goes on. It is removed once the head
    is written, with its settings and results in `out/training.json`: the same call then returns those results.
    Ctrl-C waits for the end of the step and leaves a checkpoint; pressed once more, it ends at once.

    Args:
        model: a causal language model with transformers' interface (`get_decoder`, `get_input_embeddings`, ...).
        text: what to train on; text that the target wrote itself gives the longest acceptance.
        out: folder of the result, `config.json` and `model.safetensors`.
        config: geometry of the head; its hidden size must equal the target's.
        options: see `TrainingOptions`.
        tap_layers: hidden-state indices that the head reads, [2, N // 2, N - 3] by default.
        resume: go on from, or return, what is in `out`. False begins anew and overwrites it.

    Returns:
        steps, seconds, loss, agreement of every step and tokens seen, all JSON types.

    Raises:
        ValueError: parts that do not fit together; a head or a checkpoint in `out` of other settings or data; a loss or
            weights that are not finite, which are never written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    if not config.hidden_size == config.target_hidden_size == embedding.shape[1]:
        raise UsageError(
            f"hidden_size {config.hidden_size} and target_hidden_size {config.target_hidden_size} must equal "
            f"the target's {embedding.shape[1]}: the head reads the target's embeddings"
        )
    if config.vocab_size != embedding.shape[0]:
        raise UsageError(f"vocab_size {config.vocab_size} must equal the target's {embedding.shape[0]}")
    window = options.length + options.ttt_length
    if min(map(len, text.streams)) < window:
        raise UsageError(
            f"every stream must hold {window} tokens (length + ttt_length), got {[len(s) for s in text.streams]}"
        )
    target = _Target(model, tap_layers, device)
    if len(target.taps) != config.num_aux_hidden_states:
        raise UsageError(
            f"tap_layers {list(target.taps)} must be num_aux_hidden_states = {config.num_aux_hidden_states} indices"
        )
    if tap_layers is not None:  # the default is not named, as in the released heads
        config = replace(config, eagle_aux_hidden_state_layer_ids=target.taps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        draft = _new_draft(model, config, text, _eos_ids(model)).to(device)
    run = _Run(draft, target, text, folder, options)
    if not resume:
        run.checkpoint.unlink(missing_ok=True)
    elif result := run.restore():
        return result
    with held_interrupts() as pressed:
        run.train(pressed)
        return run.finish()


class _Run:
    def __init__(self, draft: Eagle3Draft, target: _Target, text: TokenMixture, folder: Path, options: TrainingOptions):
        self.draft, self.target, self.text, self.options = draft, target, text, options
        self.cuda = target.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            draft.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=self.cuda
        )
        size = draft.config.draft_vocab_size
        self.draft_ids = draft.d2t + torch.arange(size, device=target.device)
        self.to_draft = torch.full((draft.config.vocab_size,), -1, device=target.device)
        self.to_draft[self.draft_ids] = torch.arange(size, device=target.device)
        self.weights = options.loss_decay ** torch.arange(options.ttt_length, device=target.device)
        self.folder, self.checkpoint, self.record = folder, folder / STATE_FILE, folder / RECORD_FILE
        self.step, self.spent = 0, 0.0
        self.mean: Tensor | None = None  # running mean of (losses, agreement) over about the last 50 steps
        settings = {key: value for key, value in asdict(options).items() if key not in FREE}
        settings |= {"config": asdict(draft.config), "taps": list(target.taps)}
        settings |= {"text": text.fingerprint(), "target": target.fingerprint()}
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as a file gives them back
        self.compiled = self.cuda if options.compile is None else options.compile
        self.losses = torch.compile(unrolled_losses) if self.compiled else unrolled_losses

    def restore(self) -> dict[str, Any] | None:
        """Take up what is in the folder: the results of a finished head; None if there is something left to train."""
        finished = not self.checkpoint.exists()
        if finished and not any((self.folder / name).exists() for name in HEAD_FILES):
            return None
        file = self.record if finished else self.checkpoint
        if not file.exists():
            raise UsageError(f"{self.folder} holds a head whose training left no {RECORD_FILE}: use {ANEW}")
        try:
            if finished:
                state = json.loads(file.read_text())
            else:
                state = torch.load(file, map_location=self.target.device, weights_only=True)
            saved, now = state["settings"], self.settings
            different = [key for key in now if saved.get(key) != now[key]]
        except Exception as error:  # torch raises a dozen kinds for foreign and torn files
            raise UsageError(f"{file} cannot be read, it is no state of this training: use {ANEW}") from error
        if different:
            found = ", ".join(f"{key} {saved.get(key)!r} there, {now[key]!r} here" for key in different)
            raise UsageError(f"{file} belongs to a run with other settings ({found}): use those, {ANEW}")
        if finished:
            self._say(f"{self.folder} holds the finished head of these settings")
            return {**state["result"], "draft": str(self.folder)}
        self.draft.load_state_dict(state["draft"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent, self.mean = state["step"], state["spent"], state["mean"]
        return None

    def _save(self) -> None:
        self._means()
        state = {"settings": self.settings, "step": self.step, "spent": self.spent, "mean": self.mean}
        weights = {"draft": self.draft.state_dict(), "optimizer": self.optimizer.state_dict()}
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".state-") as place:
            torch.save(state | weights, Path(place) / STATE_FILE)
            os.replace(Path(place) / STATE_FILE, self.checkpoint)

    def _means(self) -> tuple[list[float], list[float]]:
        """Losses and agreement. Raises ValueError unless they and the weights are finite: others must reach no file."""
        assert self.mean is not None
        finite = [values.isfinite().all() for values in (self.mean, *self.draft.parameters())]
        if not torch.stack(finite).all():  # one question to the device
            raise UsageError(f"loss or weights are not finite at step {self.step}: lower lr (now {self.options.lr:g})")
        losses, agreement = self.mean.tolist()
        return losses, agreement

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

    @staticmethod
    def _say(message: str) -> None:
        tqdm.write(f"train-draft: {message}", file=sys.stderr)

    def _fraction(self) -> float:
        if self.options.steps is not None:
            return self.step / self.options.steps
        assert self.options.seconds is not None
        return self.spent / self.options.seconds

    def _one_step(self, fraction: float) -> tuple[Tensor, Tensor]:
        options = self.options
        ids = self.text.windows(options.batch_size, options.length + options.ttt_length, (options.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (self.step + 1) / (options.warmup + 1)) * max(0.0, 1 - fraction)
        losses, agreement = self._loss(ids.to(self.target.device))
        (losses * self.weights).sum().backward()
        nn.utils.clip_grad_norm_(self.draft.parameters(), options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach(), agreement

    def train(self, pressed: Callable[[], bool]) -> None:
        """All steps that are left, or those until Ctrl-C was pressed, which then raises KeyboardInterrupt."""
        options = self.options
        begun: float | None = None
        saved = next_log = self.spent
        bar = tqdm(total=options.steps, initial=self.step, disable=not options.progress, unit="step", desc="draft")
        self.draft.train()
        try:
            while (fraction := self._fraction()) < 1:
                now = torch.stack(self._one_step(fraction))
                self.mean = now if self.mean is None else torch.lerp(self.mean, now, 0.02)
                self.step += 1
                bar.update()
                if self.step % 20 == 0:
                    losses, agreement = self._means()  # reading also keeps the host from running ahead of the clock
                    bar.set_postfix(loss=f"{losses[0]:.3f}", agreement=f"{agreement[0]:.3f}..{agreement[-1]:.3f}")
                if begun is None:  # the first step may compile for a minute: it takes nothing of the budget
                    begun = time.monotonic() - self.spent
                self.spent = time.monotonic() - begun
                if options.checkpoint_every and self.spent - saved >= options.checkpoint_every:
                    self._save()
                    saved = self.spent
                if options.log_every and self.spent >= next_log:
                    next_log = self.spent + options.log_every
                    losses, agreement = self.mean.tolist()
                    shown = [round(value, 3) for value in agreement]
                    self._say(f"step {self.step}, {self.spent:.0f} s, loss {losses[0]:.3f}, agreement {shown}")
                if pressed():
                    self._save()
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            file = self.checkpoint
            have = "nothing was saved yet"
            if file.exists():
                have = f"the same call, without resume=False (--restart), continues from {file}"
            self._say(f"interrupted at step {self.step}; {have}")
            raise
        finally:
            bar.close()

    def finish(self) -> dict[str, Any]:
        """Write the head and its record, each file whole or not at all; returns the results."""
        losses, agreement = self._means()
        result = {
            "steps": self.step,
            "seconds": round(self.spent, 1),
            "loss": [round(value, 4) for value in losses],
            "agreement": [round(value, 4) for value in agreement],
            "tokens": self.step * self.options.batch_size * self.options.length,
            "draft": str(self.folder),
        }
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".head-") as place:
            written = Path(place)
            save_draft(self.draft, written)
            record = {"settings": self.settings, "result": result}
            (written / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
            self.record.unlink(missing_ok=True)  # of the head that is replaced: it must never stand beside this one
            for name in (*HEAD_FILES, RECORD_FILE):
                os.replace(written / name, self.folder / name)
        self.checkpoint.unlink(missing_ok=True)
        return result
