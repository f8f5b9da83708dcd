"""One forward of a stock transformers model, entered through its attention interface.

The model runs without a cache of its own: a registered attention function stores the new keys and values in the
`StaticKVCache` that is named for the time (`attending`) and calls `tree_attention`, so one forward serves prompts,
single tokens and trees. On a GPU projections of one input are fused, and the forward may go through torch.compile.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from radar.target.attention import attend, attending
from radar.target.cache import StaticKVCache
from radar.target.compiled import compiled
from radar.target.layers import FusedLinears, fuse_projections, fused

__all__ = ["Taps", "TargetForward", "forward_of"]

_ATTENTION_NAME = "radar_tree"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: new rows in, [B, N, H, D] out."""
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    start, ancestors = kwargs["radar_start"], kwargs["radar_ancestors"]
    return attend(query, key, value, start, ancestors, module.layer_idx, scale), None  # type: ignore[arg-type]


AttentionInterface.register(_ATTENTION_NAME, _attention)


class TargetForward:
    """A model's forward with the taps of one head. It knows no cache and no number of rows: decoders share it.

    Hooks, fused projections and our attention are on the model inside `running` only, though fused weights go on
    sharing their storage.

    Args:
        model: of a supported family.
        tap_layers: `hidden_states` indices; (): no taps.
        turns: of the model, which its forwards share.
    """

    def __init__(self, model: Any, tap_layers: Sequence[int], turns: _Turns) -> None:
        self._turns = turns
        self._modules = _modules(model)
        self._decoder: Any = model.get_decoder()
        self._lm_head: nn.Module = model.get_output_embeddings()
        self._taps = Taps(self._decoder, tap_layers)
        self._fused: list[FusedLinears] = []
        if model.device.type == "cuda":
            self._fused = fuse_projections(model, self._decoder.layers, self._lm_head)
        self._compiled: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {}

    def is_of(self, model: Any) -> bool:
        """Whether the model still consists of the modules that it had."""
        now = _modules(model)
        return len(now) == len(self._modules) and all(map(operator.is_, now, self._modules))

    @contextmanager
    def running(self, cache: StaticKVCache) -> Iterator[None]:
        """Where `states` and `scores` may be called; rows go to this cache and see it."""
        config, turns = self._decoder.config, self._turns
        with turns.lock, self._taps.listening(), fused(self._fused), attending(cache):
            # transformers sets it in Python, where Ctrl-C may strike: ours, left behind by a run, is not the model's
            if config._attn_implementation != _ATTENTION_NAME:
                turns.attention = config._attn_implementation
            try:
                config._attn_implementation = _ATTENTION_NAME
                yield
            finally:
                config._attn_implementation = turns.attention

    def states(self, input_ids: Tensor, depths: Tensor, ancestors: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, N, hidden] and taps [B, N, taps * hidden] of N rows behind `length` [B] tokens."""
        out = self._decoder(
            input_ids=input_ids,
            position_ids=length[:, None] + depths,
            use_cache=False,
            radar_start=length,
            radar_ancestors=ancestors,
        )
        hidden: Tensor = out.last_hidden_state
        taps = self._taps.collect()
        return hidden, hidden[..., :0] if taps is None else taps

    def scores(self, input_ids: Tensor, depths: Tensor, ancestors: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, N, vocabulary] and taps."""
        hidden, taps = self.states(input_ids, depths, ancestors, length)
        return self._lm_head(hidden), taps

    def compiled_scores(
        self, input_ids: Tensor, depths: Tensor, ancestors: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`scores` by torch.compile, made at the first call of every layout, for all decoders of the model."""
        inputs = (input_ids, depths, ancestors, length)
        layout = tuple((tensor.shape, tensor.stride()) for tensor in inputs)  # the compiler would tell them apart too
        if layout not in self._compiled:
            self._compiled[layout] = compiled(self.scores)
        return self._compiled[layout](*inputs)


def _modules(model: Any) -> list[nn.Module]:
    """What a forward holds on to."""
    decoder = model.get_decoder()
    return [decoder, model.get_output_embeddings(), decoder.embed_tokens, *decoder.layers]


@dataclass
class _Turns:
    """Threads with decoders of their own take turns on a model. It knows no forward: a cycle would hold the weights."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    attention: str | None = None  # the model's own


@dataclass
class _Known:
    turns: _Turns = field(default_factory=_Turns)
    forwards: dict[Any, TargetForward] = field(default_factory=dict)


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def forward_of(model: Any, tap_layers: Sequence[int]) -> TargetForward:
    """The model's forward with these taps; made once, unless the model is moved or a module of it replaced since."""
    known, key = _known.setdefault(model, _Known()), (tuple(tap_layers), model.device)
    with known.turns.lock:  # making one touches hooks and weights of modules that another thread may be running
        if key not in known.forwards or not known.forwards[key].is_of(model):
            known.forwards[key] = TargetForward(model, tap_layers, known.turns)
        return known.forwards[key]


class Taps:
    """Forward hooks that keep the residual stream after chosen layers (an index base that no release has changed).

    They hang on the model inside `listening` alone, under fixed keys: torch.compile takes a new key for a new model.

    Args:
        decoder: the model without its head.
        layers: `hidden_states` indices.
    """

    def __init__(self, decoder: Any, layers: Sequence[int]) -> None:
        self._kept: dict[int, Tensor] = {}
        self._layers = tuple(layers)
        self._hooks: list[tuple[nn.Module, int, Any]] = []
        for index in sorted(set(layers)):
            module = decoder.layers[index - 1] if index else decoder.embed_tokens
            handle = module.register_forward_hook(hook := self._hook(index))
            handle.remove()
            self._hooks.append((module, handle.id, hook))

    def _hook(self, index: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._kept[index] = output[0] if isinstance(output, tuple) else output

        return keep

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what passes through the layers."""
        try:
            for module, key, hook in self._hooks:
                module._forward_hooks[key] = hook
            yield
        finally:
            for module, key, _ in self._hooks:
                module._forward_hooks.pop(key, None)

    def collect(self) -> Tensor | None:
        """The last forward's taps side by side [B, N, taps * hidden]; None without taps."""
        kept = [self._kept[index] for index in self._layers]
        self._kept.clear()
        return torch.cat(kept, dim=-1) if kept else None
