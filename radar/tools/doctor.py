"""What a draft head's file leaves open, decided by measuring: each plausible reading drafts, and acceptance tells.

A head that is read wrongly still runs, and its text is still the target's own; it only accepts less, down to nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from radar.config import TreeConfig
from radar.draft.config import DraftConfig
from radar.generation.base import Decoder
from radar.metrics import Round
from radar.tools.features import FeatureUse
from radar.tools.readings import FLAGS
from radar.tools.table import table

__all__ = ["CHAIN", "Diagnosis", "Measurement", "diagnose", "render"]

CHAIN = TreeConfig(total_tokens=9, tree_top_k=1, max_calls=8)
"""What to measure with: a tree forgives a poor reading by its breadth, a chain of eight drafts does not."""

STRETCH = 8  # tokens: texts are compared in pieces of this length, which is a few rounds
WEAK = 1.2  # tokens per target pass, of which the target's own is 1
FEWEST = 64  # tokens: the share of so many is known to 0.06 or so
READS, DEAF = 0.58, 0.55  # of `FeatureUse.share`, which is 0.5 by chance


@dataclass(frozen=True)
class Measurement:
    """One reading and what it accepted.

    Attributes:
        config: the reading, its taps named.
        mean_acceptance_length: over all rounds of all prompts, the target's own token included.
        passes: target passes of each stretch of `STRETCH` tokens, of every text. The text is the target's own whatever
            the reading, so the same stretches are there under all of them.
    """

    config: DraftConfig
    mean_acceptance_length: float
    passes: tuple[int, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All readings, the best first.

    Attributes:
        measurements: by falling mean acceptance length.
        as_loaded: the reading that the loader takes, its taps named.
        rivals: the best one, and those that it does not clearly beat.
        use: of a head that drafts little: what the target's features tell it under the best reading.
    """

    measurements: tuple[Measurement, ...]
    as_loaded: DraftConfig
    rivals: tuple[Measurement, ...]
    use: FeatureUse | None

    @property
    def winner(self) -> DraftConfig | None:
        """The reading that clearly beats all others, if there is one."""
        return self.rivals[0].config if len(self.rivals) == 1 else None

    def settings(self) -> dict[str, Any]:
        """The keys at the top of `config.json` that turn the file's reading into what all rivals agree on."""
        best = self.rivals[0].config
        changed = [key for key in KEYS if getattr(best, key) != getattr(self.as_loaded, key) and key not in self.open()]
        written = dict.fromkeys(FLAGS, False) | best.to_dict()  # which leaves out flags that are not set
        return {key: written.get(key) for key in changed}

    def open(self) -> list[str]:
        """The keys in which the rivals differ."""
        return [key for key in KEYS if len({getattr(rival.config, key) for rival in self.rivals}) > 1]


KEYS = ("eagle_aux_hidden_state_layer_ids", "rope_theta", "rope_scaling", *FLAGS)


def diagnose(
    as_loaded: DraftConfig,
    readings: Sequence[DraftConfig],
    make: Callable[[DraftConfig], Decoder[Any]],
    use: Callable[[DraftConfig, Sequence[Sequence[int]]], FeatureUse],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    advance: Callable[[], object] = lambda: None,
) -> Diagnosis:
    """Decode the prompts under every reading.

    One reading beats another if it needs fewer passes for the same stretches of text, by more than twice the standard
    error of that difference, and more yet where there are few stretches.

    Args:
        as_loaded: the loader's reading, its taps named (`with_taps`).
        readings: of `plausible_readings`.
        make: a decoder that drafts with the head under a reading, best with `CHAIN` and a fixed depth.
        use: `feature_use` of the head under a reading, on prompts with their outputs; asked if all draft little.
        prompts: token ids.
        max_new_tokens: limit of each output.
        advance: called after each reading, for a progress bar.
    """
    measurements, outputs = [], [list(prompt) for prompt in prompts]
    for config in readings:
        decoder = make(config)
        texts = [list(decoder.rounds(prompt, max_new_tokens=max_new_tokens, do_sample=False)) for prompt in prompts]
        rounds = [item for text in texts for item in text if not item.is_prefill]
        accepted = sum(item.accept_length for item in rounds)
        passes = tuple(count for text in texts for count in _passes(text))
        measurements.append(Measurement(config, 1 + accepted / len(rounds) if rounds else 1.0, passes))
        if config == readings[0]:  # the text is the same under all
            outputs = [[*prompt, *_tokens(text)] for prompt, text in zip(prompts, texts, strict=True)]
        advance()
    measurements.sort(key=lambda item: -item.mean_acceptance_length)
    best = measurements[0]
    rivals = [best, *(item for item in measurements[1:] if not _beats(best, item))]
    weak = best.mean_acceptance_length < WEAK
    return Diagnosis(tuple(measurements), as_loaded, tuple(rivals), use(best.config, outputs) if weak else None)


def _tokens(rounds: Sequence[Round]) -> list[int]:
    return [token for item in rounds for token in item.tokens]


def _passes(rounds: Sequence[Round]) -> list[int]:
    """Target passes that begin in each stretch of a text."""
    counts = [0] * -(-sum(len(item.tokens) for item in rounds) // STRETCH)
    position = 0
    for item in rounds:
        counts[position // STRETCH] += 1
        position += len(item.tokens)
    return counts


def _beats(one: Measurement, other: Measurement) -> bool:
    saved = [b - a for a, b in zip(one.passes, other.passes, strict=False)]  # in 16 bits a tie may shorten a text
    if len(saved) < 2:
        return False
    return fmean(saved) > (2 + 4 / (len(saved) - 1)) * stdev(saved) / math.sqrt(len(saved))


def render(diagnosis: Diagnosis) -> str:
    """The table and the verdict that `radar doctor` prints."""
    best = diagnosis.measurements[0].mean_acceptance_length
    rows = []
    for item in diagnosis.measurements:
        standing = (
            "worse" if item not in diagnosis.rivals else "best" if len(diagnosis.rivals) == 1 else "among the best"
        )
        share, note = item.mean_acceptance_length / best, "yes" if item.config == diagnosis.as_loaded else ""
        figures = [f"{item.mean_acceptance_length:.2f}", f"{share:.0%}"]
        standing = standing if item in diagnosis.rivals else "worse"
        rows.append([_describe(item.config, diagnosis), *figures, standing, note])
    headers = ["reading", "tokens per target pass", "of the best", "standing", "the file's"]
    return "\n".join([table(headers, rows), "", *_verdict(diagnosis)])


def _describe(config: DraftConfig, diagnosis: Diagnosis) -> str:
    parts = [f"taps {' '.join(map(str, config.eagle_aux_hidden_state_layer_ids or ()))}"]
    scaling = "" if config.rope_scaling is None else f" {config.rope_scaling.rope_type}"
    parts.append(f"rope {config.rope_theta:g}{scaling}")
    open_flags = [name for name in FLAGS if len({getattr(m.config, name) for m in diagnosis.measurements}) > 1]
    parts += [f"{name} {str(getattr(config, name)).lower()}" for name in open_flags]
    return ", ".join(parts)


def _verdict(diagnosis: Diagnosis) -> list[str]:
    lines = [] if diagnosis.use is None else _weakness(diagnosis.measurements[0].mean_acceptance_length, diagnosis.use)
    if diagnosis.winner is None and len(diagnosis.rivals) == len(diagnosis.measurements):
        return [*lines, "No reading is clearly better than another on so few prompts; more prompts may tell."]
    settings, open_keys = diagnosis.settings(), diagnosis.open()
    if settings:
        lines.append("Clearly better, so set at the top of the draft's config.json, and nowhere below:")
        lines += [f'  "{key}": {json.dumps(value)}' for key, value in settings.items()]
        if taps := settings.get("eagle_aux_hidden_state_layer_ids"):
            lines.append(f"or pass the taps: RadarDecoder(..., tap_layers={tuple(taps)})")
    if not open_keys:
        return lines if settings else [*lines, "The file is read rightly as it is."]
    if settings:
        advice = "any of the best will do, and more prompts may tell"
    elif any(item.config == diagnosis.as_loaded for item in diagnosis.rivals):
        advice = "the file's own reading is among the best and can stay"
    else:
        advice = "the file's own reading is worse than any of the best: take one of those"
    return [*lines, f"Not clear on so few prompts: {', '.join(open_keys)}; {advice}."]


def _weakness(length: float, use: FeatureUse) -> list[str]:
    if use.places < FEWEST:
        why = f"Of fewer than {FEWEST} tokens that tells nothing; more prompts may."
    elif use.share > READS:
        why = "So it is a head of this target, or of one much like it, with little training or on other text."
    elif use.share < DEAF:
        why = "So nothing of this target is read: it is a head for another one, untrained, or of another kind."
    else:
        why = "That is too little to tell a head with next to no training from one for another target."
    return [
        f"The head drafts little however it is read: {length:.2f} tokens per target pass, of which 1 is the target's.",
        f"With the features of their own place {use.share:.0%} of {use.places} tokens are likelier than with those of "
        "another place; by chance it would be 50%.",
        why,
    ]
