"""The plausible readings of a draft head's file: what it leaves open or may misstate."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from radar.draft.config import DraftConfig
from radar.draft.scaling import RopeScaling
from radar.errors import UsageError
from radar.target.model import default_tap_layers

__all__ = ["FLAGS", "plausible_readings", "target_rope", "with_taps"]

Rope = tuple[float, RopeScaling | None]
FLAGS = ("norm_before_residual", "norm_output")  # tensors tell all others


def target_rope(config: Any) -> Rope | None:
    """Base and scaling of a transformers config; None if they are of a kind that heads cannot have."""
    values = getattr(config, "rope_parameters", None)
    if not isinstance(values, Mapping) or not isinstance(values.get("rope_theta"), int | float):
        return None
    try:
        scaling = RopeScaling.from_dict(values, getattr(config, "max_position_embeddings", None))
    except ValueError:
        return None
    return float(values["rope_theta"]), scaling


def with_taps(config: DraftConfig, num_layers: int) -> DraftConfig:
    """The config with its taps named: its own, or those of EAGLE-3's rule for a target of `num_layers`."""
    taps = config.eagle_aux_hidden_state_layer_ids or default_tap_layers(num_layers)
    return replace(config, eagle_aux_hidden_state_layer_ids=taps)


def plausible_readings(
    config: DraftConfig, *, num_layers: int, rope: Rope | None, doubtful: Collection[str] = ()
) -> list[DraftConfig]:
    """Readings worth measuring, each with its taps named; the file's own is the first, if the target has its taps.

    Taps: the file's, EAGLE-3's rule, and the file's moved by one either way, for trainers that count from elsewhere.
    Rotary embedding: the file's, the target's (`rope`), and EAGLE-3's 10,000 without scaling; files misstate it.
    Norms: both values of the flags that are `doubtful` (`LoadReport.doubtful`).

    Raises:
        ValueError: if no reading of the taps exists in a target of `num_layers`.
    """
    rule = default_tap_layers(num_layers)
    own = with_taps(config, num_layers).eagle_aux_hidden_state_layer_ids or rule
    taps = [own, *([rule] if len(own) == 3 else []), *(tuple(tap + by for tap in own) for by in (-1, 1))]
    taps = [item for item in dict.fromkeys(taps) if all(0 <= tap < num_layers for tap in item)]
    if not taps:
        raise UsageError(
            f"the head's taps {list(own)} and their neighbours do not exist in a target of {num_layers} layers: "
            "it belongs to another target"
        )
    own_rope: Rope = (config.rope_theta, config.rope_scaling)
    ropes = dict.fromkeys(item for item in (own_rope, rope, (10000.0, None)) if item is not None)
    flags = [name for name in FLAGS if name in doubtful]
    values = [(getattr(config, name), not getattr(config, name)) for name in flags]
    return [
        replace(
            config,
            eagle_aux_hidden_state_layer_ids=item,
            rope_theta=theta,
            rope_scaling=scaling,
            **dict(zip(flags, chosen, strict=True)),
        )
        for item, (theta, scaling), chosen in itertools.product(taps, ropes, itertools.product(*values))
    ]
