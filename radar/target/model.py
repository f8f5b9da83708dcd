"""The target: a stock transformers model with a static cache and taps. No modelling code is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radar.errors import UsageError
from radar.target.attention import causal_ancestors
from radar.target.cache import StaticKVCache
from radar.target.forward import forward_of
from radar.target.positions import position_limit

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "TargetModel",
    "TargetOutput",
    "default_max_length",
    "default_tap_layers",
    "resolve_tap_layers",
]

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class TargetOutput:
    """One forward over N rows.

    Attributes:
        hidden_states: after the final norm [B, N, hidden]; `TargetModel.logits` takes them.
        aux_hidden_states: the taps side by side, low to high [B, N, taps * hidden]; empty without taps.
    """

    hidden_states: Tensor
    aux_hidden_states: Tensor


def default_tap_layers(num_layers: int) -> tuple[int, int, int]:
    """EAGLE-3's low, middle and high feature as `hidden_states` indices (0: embeddings, i: output of layer i - 1)."""
    return (2, num_layers // 2, num_layers - 3)


def resolve_tap_layers(num_layers: int, tap_layers: Sequence[int] | None) -> tuple[int, ...]:
    """The taps named, or the default's. Raises ValueError for indices that a model of `num_layers` does not have."""
    taps = default_tap_layers(num_layers) if tap_layers is None else tuple(tap_layers)
    if any(not 0 <= layer < num_layers for layer in taps):
        raise UsageError(
            f"tap_layers must be hidden_states indices from 0 to {num_layers - 1} for a model of {num_layers} layers "
            f"(the last state is normed and no feature), got {list(taps)}"
            + (" by default: name others" if tap_layers is None else "")
        )
    return taps


def default_max_length(model: Any) -> int:
    """2048 tokens, or as many as the model has positions for."""
    return min(2048, position_limit(model.config) or 2048)


class TargetModel:
    """A causal language model that verifies trees.

    Args:
        model: a loaded model of a supported family. It is left as it is outside of a forward (`TargetForward`).
        max_length: tokens that the cache holds, prompt and output together.
        max_rows: the most rows of one forward.
        batch_size: rows of the batch.
        tap_layers: `hidden_states` indices for the draft head; None: EAGLE-3's default; (): no taps.
        compile: let torch.compile make `verify`: 10 to 30 seconds for every number of rows, once for each machine.

    Raises:
        ValueError: for a family that is not supported, sliding windows shorter than `max_length`, a model spread over
            several devices, or tap indices that the model does not have.
    """

    def __init__(
        self,
        model: Any,  # a PreTrainedModel; its own annotations differ between releases
        *,
        max_length: int,
        max_rows: int,
        batch_size: int = 1,
        tap_layers: Sequence[int] | None = None,
        compile: bool = False,
    ) -> None:
        config = model.config
        _check_family(model, max_length)
        num_layers = int(config.num_hidden_layers)
        self.model = model
        self.tap_layers = resolve_tap_layers(num_layers, tap_layers)
        self.max_length = max_length
        self.max_rows = max_rows
        self.vocab_size = int(config.vocab_size)
        self.hidden_size = int(config.hidden_size)
        self.device = model.device
        self.dtype = model.dtype
        self.embed_tokens: nn.Module = model.get_input_embeddings()
        self._lm_head: nn.Module = model.get_output_embeddings()
        self._run = forward_of(model, self.tap_layers)
        self._compile = compile
        self.cache = StaticKVCache(
            num_layers=num_layers,
            batch_size=batch_size,
            num_kv_heads=int(config.num_key_value_heads),
            capacity=max_length + max_rows,
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
            dtype=self.dtype,
            device=self.device,
        )
        self._causal: dict[int, Tensor] = {}  # ancestors of chains, by rows
        self._rows = torch.arange(max_rows, device=self.device)

    def forward(self, input_ids: Tensor, depths: Tensor, ancestors: Tensor) -> TargetOutput:
        """Run N rows that see the committed cache and, among themselves, their ancestors. Commits nothing.

        Args:
            input_ids: [B, N].
            depths: [B, N] positions behind the committed text, 0 for the next token.
            ancestors: [B, N, W] words as in `VerifyTree`.
        """
        with self._run.running(self.cache):
            return TargetOutput(*self._run.states(input_ids, depths, ancestors, self.cache.length))

    def verify(self, input_ids: Tensor, depths: Tensor, ancestors: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` at full speed, with the scores of every row: logits [B, N, vocabulary] and aux_hidden_states."""
        scores = self._run.compiled_scores if self._compile else self._run.scores
        with self._run.running(self.cache):
            return scores(input_ids, depths, ancestors, self.cache.length)

    def chain(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of `forward` and `verify` for N tokens [B, N] that follow one another."""
        rows = input_ids.shape[1]
        if rows not in self._causal:  # each its own: attention goes through all columns that the words stand for
            self._causal[rows] = causal_ancestors(rows, self.device)
        return input_ids, self._rows[None, :rows], self._causal[rows]

    def forward_chain(self, input_ids: Tensor) -> TargetOutput:
        """Run N tokens [B, N] that follow the committed ones. Commits nothing: see `advance`."""
        return self.forward(*self.chain(input_ids))

    def advance(self, count: Tensor | int) -> None:
        """Commit the first `count` rows of the last `forward_chain`."""
        self.cache.length += count

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[B, N, hidden] -> [B, N, vocabulary]."""
        return self._lm_head(hidden_states)  # type: ignore[no-any-return]


def _check_family(model: Any, max_length: int) -> None:
    config = model.config
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
        raise UsageError(f"max_length must be an integer of 2 or more (prompt and output together), got {max_length!r}")
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise UsageError(
            f"unsupported target architecture {config.model_type!r}; supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if window and window < max_length and (layer_types is None or "sliding_attention" in layer_types):
        raise UsageError(
            f"this {config.model_type} model attends to a sliding window of {window} tokens, which is not supported "
            f"beyond the window: use max_length={window} or less, got {max_length}"
        )
    limit = position_limit(config)
    if limit and max_length > limit:
        raise UsageError(f"max_length {max_length} is more than the {limit} positions that the model was made for")
    if moving := sorted(_rope_types(config) & {"dynamic", "longrope"}):
        raise UsageError(
            f"the target's rotary embedding is of type {moving[0]!r}, whose frequencies change with the longest "
            "position of a forward, so that nodes of a tree would change those of the text before them: use a model of "
            "type default, linear, yarn or llama3"
        )
    if model.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"the target must be float32, float16 or bfloat16, got {model.dtype}: load it with dtype=")
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        raise UsageError("the target is spread over several devices (device_map); load it on one device")


def _rope_types(config: Any) -> set[str]:
    """Types of rotary embedding, of all kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return {str(kind.get("rope_type", "default")) for kind in kinds}
