"""Train an EAGLE-3 draft head on a target's own predictions: resumable, by steps or by the clock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from radar.draft.config import DraftConfig
from radar.errors import UsageError
from radar.target.positions import position_limit
from radar.train.draft_run import DraftRun
from radar.train.draft_target import FrozenTarget, new_draft
from radar.train.interrupts import interruptible
from radar.train.options import TrainingOptions
from radar.train.tokens import TokenMixture

__all__ = ["TrainingOptions", "train_draft"]


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
    _check(model, text, config, options, len(target.taps))
    config = replace(config, eagle_aux_hidden_state_layer_ids=target.taps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        draft = new_draft(model, config, text).to(target.device)
    run = DraftRun(draft, target, text, folder, options)
    if not resume:
        run.checkpoint.unlink(missing_ok=True)
    elif result := run.restore():
        return result
    with interruptible() as interrupts:
        run.warn_of_hours()
        run.train(interrupts)
        with interrupts.held():
            return run.finish()


def _check(model: Any, text: TokenMixture, config: DraftConfig, options: TrainingOptions, taps: int) -> None:
    embedding: Tensor = model.get_input_embeddings().weight
    if not config.hidden_size == config.target_hidden_size == embedding.shape[1]:
        raise UsageError(
            f"hidden_size {config.hidden_size} and target_hidden_size {config.target_hidden_size} must equal "
            f"the target's {embedding.shape[1]}: the head reads the target's embeddings"
        )
    if config.vocab_size != embedding.shape[0]:
        raise UsageError(f"vocab_size {config.vocab_size} must equal the target's {embedding.shape[0]}")
    if taps != config.num_aux_hidden_states:
        raise UsageError(
            f"tap_layers must be num_aux_hidden_states = {config.num_aux_hidden_states} indices, got {taps}"
        )
    window, limit = options.length + options.ttt_length, position_limit(model.config)
    if limit is not None and window > limit:
        raise UsageError(
            f"length (--length) {options.length} + ttt_length {options.ttt_length} is more than the target's {limit} "
            f"positions: its predictions beyond them teach nothing; {limit - options.ttt_length} is the most"
        )
    if min(map(len, text.streams)) < window:
        raise UsageError(
            f"every stream must hold {window} tokens (length + ttt_length), got {[len(s) for s in text.streams]}: give "
            "more text, or a smaller length (--length)"
        )
