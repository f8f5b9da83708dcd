"""The frozen target of a head that is trained, and the head before its first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.generation.stops import end_token_ids
from radar.target.bound import Taps
from radar.target.families import decoder_of
from radar.target.model import resolve_tap_layers
from radar.target.positions import position_limit
from radar.train.options import TrainingOptions
from radar.train.tokens import TokenMixture

__all__ = ["FrozenTarget", "new_draft"]

LEAST_COVERED = 0.5  # of the text by the draft vocabulary


class FrozenTarget:
    """A target in its own precision, and its taps."""

    def __init__(self, model: Any, tap_layers: Sequence[int] | None) -> None:
        self.model = model.eval()
        self.device: torch.device = next(model.parameters()).device
        self.embed: nn.Module = model.get_input_embeddings()
        decoder = decoder_of(model)
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


def new_draft(target: FrozenTarget, config: DraftConfig, text: TokenMixture, options: TrainingOptions) -> Eagle3Draft:
    """A fresh head: the most frequent tokens (and every end token) as vocabulary, the target's rows as lm_head.

    ValueError: sizes that do not fit together; a vocabulary that is too small for a tree, or for the text: what it
    lacks is never drafted.
    """
    rows, hidden = target.model.get_input_embeddings().weight.shape
    taps = len(target.taps)
    sizes = {"hidden_size": hidden, "target_hidden_size": hidden, "vocab_size": rows, "num_aux_hidden_states": taps}
    for name, size in sizes.items():
        if (given := getattr(config, name)) != size:
            raise UsageError(f"the head's {name} {given} must be {size}, as of the target's embedding and tap_layers")
    window, limit = options.length + options.ttt_length, position_limit(target.model.config)
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
    size, width = config.draft_vocab_size, TreeConfig().tree_top_k
    if size < width:
        raise UsageError(
            f"draft_vocab_size (--draft-vocab-size) must be {width} or more, a draft call's beam, got {size}"
        )
    config = replace(config, eagle_aux_hidden_state_layer_ids=target.taps)
    draft, frequency = Eagle3Draft(config), torch.from_numpy(text.frequencies(config.vocab_size))
    if size < config.vocab_size:
        order = frequency.argsort(descending=True, stable=True)  # ties go to the smaller id on every machine
        if (covered := float(frequency[order[:size]].sum())) < LEAST_COVERED:
            enough = int((frequency[order].cumsum(0) < 0.9).sum()) + 1
            raise UsageError(
                f"draft_vocab_size (--draft-vocab-size) {size} covers {covered:.0%} of the text, and what it lacks is "
                f"never drafted: the {enough} most frequent tokens cover 90 %"
            )
        frequency[[token for token in end_token_ids(target.model, None) if 0 <= token < config.vocab_size]] = math.inf
        order = frequency.argsort(descending=True, stable=True)
        draft.set_draft_vocabulary(order[:size].sort().values)
    weight = target.model.get_output_embeddings().weight.detach()
    weight = weight if type(weight) is Tensor else weight.dequantize()  # torchao's
    if weight.shape[1] == config.hidden_size and weight.itemsize > 1:  # the numbers of 8 bits wait for a scale
        draft.lm_head.weight.data.copy_(weight[draft.target_ids().to(weight.device)])
    return draft.to(target.device)
