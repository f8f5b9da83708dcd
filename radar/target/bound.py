"""BoundModel: one stock transformers model as decoders run it, entered through its attention interface.

The model runs without a cache of its own: a registered attention function stores the new keys and values in the
`StaticKVCache` that is named for the time (`radar.target.running`) and attends to it, so one forward serves
prompts, single tokens and trees. What a family, a hook on the model or a subclass does to its scores is done here too,
since the whole model is called. On a GPU stock layers, or norms and projections one by one, run as ours: the family's
row says which. Nothing of this is seen by other threads, and nothing is left on the model behind a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from radar.errors import UsageError
from radar.target.attending import attending, attention_configs
from radar.target.attention import Seen, attend
from radar.target.cache import StaticKVCache
from radar.target.experts import experts_for
from radar.target.families import decoder_of
from radar.target.fingerprint import Fingerprint, fingerprint
from radar.target.fused_layer import FusedLayers
from radar.target.layers import Fused, fuse_projections, fused
from radar.target.needs import Needs
from radar.target.norms import FusedNorms
from radar.target.quantised import settle
from radar.target.running import Owner, attended, experts_of, is_attending, is_running, running
from radar.target.shared import shared
from radar.target.turn import Turn

__all__ = ["BoundModel", "Taps"]

_ATTENTION = "radar_tree"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: new rows in, [B, N, H, D] out."""
    scale = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    start, seen = kwargs["radar_start"], kwargs["radar_seen"]
    needs = Needs(kwargs.get("sliding_window"), kwargs.get("softcap"), kwargs.get("s_aux"))
    return attend(query, key, value, start, seen, module.layer_idx, scale, needs), None  # type: ignore[arg-type]


AttentionInterface.register(_ATTENTION, _attention)


def _attention_of(config: Any) -> str | None:
    """Ours in threads that run the config's model, the model's own in all others."""
    return _ATTENTION if is_attending(config) else None


class BoundModel:
    """What all decoders of a model share: the lock that they take turns by, taps, layers that run as ours.

    It knows no cache and no number of rows. `of` finds the one of a model; it goes with the last decoder that holds it.

    Args:
        model: of a supported family.

    Attributes:
        model: the model.
        decoder: the model without its output layer.
        turn: whose forward runs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: Any = decoder_of(model)
        self.turn = Turn("model")
        self._owner = Owner()
        self._print: Fingerprint | None = None
        self._groups: list[Fused] = []
        self._taps: dict[tuple[int, ...], Taps] = {}

    @classmethod
    def of(cls, model: Any) -> BoundModel:
        """The model's."""
        return shared(model, lambda: cls(model))

    def refresh(self) -> Fingerprint:
        """Take the model as it is now: modules that were replaced, weights that were moved. Call it before a text."""
        with self.turn.taken():  # a thread that runs the model has hooks and forwards of ours on it
            if self._print is None:
                settle(self.model)
            now = fingerprint(self.model)
            if self._print is None or now.layout != self._print.layout:
                self._taps.clear()
                self.decoder = decoder_of(self.model)
                self._owner.configs = attention_configs(self.model)
                self._owner.experts = experts_for(self.model)
                self._groups = []
                if self.model.device.type == "cuda":
                    self.fuse()
                    now = fingerprint(self.model)
            self._print = now
            return now

    def fuse(self) -> None:
        """Let stock layers and projections run as ours, from the next run on until the layout changes."""
        groups = fuse_projections(self.decoder.layers, [self.model.get_output_embeddings()], self._owner)
        layers = FusedLayers(self.decoder, groups, self._owner)
        self._groups = [layers, FusedNorms(self.model, self._owner), *groups]

    @contextmanager
    def running(self, cache: StaticKVCache, tap_layers: tuple[int, ...] = ()) -> Iterator[None]:
        """Where `scores` may be called; rows go to this cache and see it. Raises BusyError inside of itself."""
        with (
            self.turn.taken(),
            fused(self._groups),
            self._tapped(tap_layers).listening(),  # behind it: a layer with a hook is not ours
            running(self._owner, cache),
            attending(self._owner, self._owner.configs, _attention_of, experts_of),
        ):
            yield

    def scores(
        self,
        tap_layers: tuple[int, ...],
        input_ids: Tensor,
        depths: Tensor,
        seen: Seen,
        length: Tensor,
        *,
        start: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, N, vocabulary] and taps [B, N, taps * hidden] of N rows behind `length` [B] tokens.

        Args:
            tap_layers: as in `running`.
            input_ids: [B, N].
            depths: [B, N] positions behind the committed text.
            seen: as in `attend`.
            length: [B] committed tokens.
            start: [B] where the rows' keys and values go to; None: behind the committed tokens.
            keep: [M] indices of the rows whose logits are made; None: all.
        """
        taps, before = self._tapped(tap_layers), attended()
        logits: Tensor = self.model(
            input_ids=input_ids.clamp(min=0),  # of a row without a next token, NO_TOKEN
            position_ids=length[:, None] + depths,
            use_cache=False,
            return_dict=True,
            logits_to_keep=0 if keep is None else keep,
            radar_start=length if start is None else start,
            radar_seen=seen,
        ).logits
        ours, all_of_them = attended() - before, self.model.config.num_hidden_layers
        if ours != all_of_them:
            raise UsageError(
                f"{ours} of the target's {all_of_them} layers attend by transformers' attention interface: the others "
                "have an attention of their own, which sees no text and no tree; load the model as transformers has it "
                "(without trust_remote_code or a library that replaces attention)"
            )
        found = taps.collect()
        return logits, logits[..., :0] if found is None else found

    def _tapped(self, layers: tuple[int, ...]) -> Taps:
        if layers not in self._taps:
            self._taps[layers] = Taps(self.decoder, layers, self._owner)
        return self._taps[layers]


class Taps:
    """Forward hooks that keep the residual stream after chosen layers (an index base that no release has changed).

    They hang on the model inside `listening` alone.

    Args:
        decoder: the model without its head.
        layers: `hidden_states` indices.
        owner: keep what threads that run it do (`radar.target.running`); None: what any thread does.
    """

    def __init__(self, decoder: Any, layers: Sequence[int], owner: Owner | None = None) -> None:
        self._kept: dict[int, Tensor] = {}
        self._layers = tuple(layers)
        self._hooks: list[tuple[nn.Module, int, Any]] = []
        for index in sorted(set(layers)):
            module = decoder.layers[index - 1] if index else decoder.embed_tokens
            handle = module.register_forward_hook(hook := _keep(self._kept, index, owner))
            handle.remove()
            self._hooks.append((module, handle.id, hook))

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


def _keep(kept: dict[int, Tensor], index: int, owner: Owner | None) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        if owner is None or is_running(owner):
            kept[index] = output[0] if isinstance(output, tuple) else output

    return keep
