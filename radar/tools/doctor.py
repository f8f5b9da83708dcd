"""What a draft head's file leaves open, decided by measuring: each plausible reading drafts, and acceptance tells.

A head that is read wrongly still runs, and its text is still the target's own; it only accepts less, down to nothing.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from radar.config import TreeConfig
from radar.draft.config import DraftConfig, RopeScaling
from radar.errors import UsageError
from radar.generation.base import Decoder
from radar.metrics import merge
from radar.target.model import default_tap_layers

__all__ = ["CHAIN", "Diagnosis", "Measurement", "diagnose", "plausible_readings", "render", "target_rope", "with_taps"]

CHAIN = TreeConfig(total_tokens=9, tree_top_k=1, max_calls=8)
"""What to measure with: a tree forgives a poor reading by its breadth, a chain of eight drafts does not."""

Rope = tuple[float, RopeScaling | None]
_FLAGS = ("norm_before_residual", "norm_output")  # tensors tell all others
_USELESS = 1.2  # tokens per target pass, of which the target's own is 1


@dataclass(frozen=True)
class Measurement:
    """One reading and what it accepted.

    Attributes:
        config: the reading, its taps named.
        per_prompt: mean acceptance length of each prompt, the target's own token included.
        mean_acceptance_length: over all rounds of all prompts.
    """

    config: DraftConfig
    per_prompt: tuple[float, ...]
    mean_acceptance_length: float


@dataclass(frozen=True)
class Diagnosis:
    """All readings, the best first.

    Attributes:
        measurements: by falling mean acceptance length.
        as_loaded: the reading that the loader takes, its taps named.
        rivals: the best one, and those that it does not clearly beat.
    """

    measurements: tuple[Measurement, ...]
    as_loaded: DraftConfig
    rivals: tuple[Measurement, ...]

    @property
    def winner(self) -> DraftConfig | None:
        """The reading that clearly beats all others, if there is one."""
        return self.rivals[0].config if len(self.rivals) == 1 else None

    def settings(self, config: DraftConfig) -> dict[str, Any]:
        """The keys at the top of `config.json` that turn the file's reading into `config`."""
        keys = ("eagle_aux_hidden_state_layer_ids", "rope_theta", "rope_scaling", *_FLAGS)
        changed = [key for key in keys if getattr(config, key) != getattr(self.as_loaded, key)]
        written = dict.fromkeys(_FLAGS, False) | config.to_dict()  # which leaves out flags that are not set
        return {key: written.get(key) for key in changed}


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
    flags = [name for name in _FLAGS if name in doubtful]
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


def diagnose(
    as_loaded: DraftConfig,
    readings: Sequence[DraftConfig],
    make: Callable[[DraftConfig], Decoder[Any]],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    advance: Callable[[], object] = lambda: None,
) -> Diagnosis:
    """Decode the prompts under every reading.

    One reading beats another if its advantage, averaged over prompts, is more than twice its standard error; a single
    prompt decides nothing.

    Args:
        as_loaded: the loader's reading, its taps named (`with_taps`).
        readings: of `plausible_readings`.
        make: a decoder that drafts with the head under a reading, best with `CHAIN` and a fixed depth.
        prompts: token ids.
        max_new_tokens: limit of each output.
        advance: called after each reading, for a progress bar.
    """
    measurements = []
    for config in readings:
        decoder = make(config)
        runs = [decoder.generate(prompt, max_new_tokens=max_new_tokens).metrics for prompt in prompts]
        per_prompt = tuple(run.mean_acceptance_length for run in runs)
        measurements.append(Measurement(config, per_prompt, merge(runs).mean_acceptance_length))
        advance()
    measurements.sort(key=lambda item: -item.mean_acceptance_length)
    best = measurements[0]
    rivals = [best, *(item for item in measurements[1:] if not _beats(best, item))]
    return Diagnosis(tuple(measurements), as_loaded, tuple(rivals))


def _beats(one: Measurement, other: Measurement) -> bool:
    gains = [a - b for a, b in zip(one.per_prompt, other.per_prompt, strict=True)]
    return len(gains) > 1 and fmean(gains) > 2 * stdev(gains) / math.sqrt(len(gains))


def render(diagnosis: Diagnosis) -> str:
    """The table and the verdict that `radar doctor` prints."""
    names = [_describe(item.config, diagnosis) for item in diagnosis.measurements]
    width = max(map(len, names)) + 2
    lines = [f"  {'reading':{width}}{'tokens per target pass':>22}"]
    for index, (name, item) in enumerate(zip(names, diagnosis.measurements, strict=True)):
        note = "   as the file is read" if item.config == diagnosis.as_loaded else ""
        lines.append(f"{'*' if index == 0 else ' '} {name:{width}}{item.mean_acceptance_length:>22.2f}{note}")
    return "\n".join([*lines, "", *_verdict(diagnosis)])


def _describe(config: DraftConfig, diagnosis: Diagnosis) -> str:
    parts = [f"taps {' '.join(map(str, config.eagle_aux_hidden_state_layer_ids or ()))}"]
    scaling = "" if config.rope_scaling is None else f" {config.rope_scaling.rope_type}"
    parts.append(f"rope {config.rope_theta:g}{scaling}")
    open_flags = [name for name in _FLAGS if len({getattr(m.config, name) for m in diagnosis.measurements}) > 1]
    parts += [f"{name} {str(getattr(config, name)).lower()}" for name in open_flags]
    return ", ".join(parts)


def _verdict(diagnosis: Diagnosis) -> list[str]:
    best, winner = diagnosis.measurements[0], diagnosis.winner
    if best.mean_acceptance_length < _USELESS:
        return ["No reading drafts well: the head may belong to another target, or be of another kind."]
    if winner is None:
        names = [f"  {_describe(item.config, diagnosis)}" for item in diagnosis.rivals]
        return ["No clear winner between these, on so few prompts; more prompts may tell:", *names]
    settings = diagnosis.settings(winner)
    if not settings:
        return ["The file is read rightly as it is."]
    lines = ["The best reading is clear. Set at the top of the draft's config.json, and nowhere below:"]
    lines += [f'  "{key}": {json.dumps(value)}' for key, value in settings.items()]
    if "eagle_aux_hidden_state_layer_ids" in settings:
        lines.append(f"or pass the taps: RadarDecoder(..., tap_layers={winner.eagle_aux_hidden_state_layer_ids})")
    return lines
