"""Metrics in the text format that Prometheus scrapes (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping

from radar.metrics import DecodeMetrics

__all__ = ["prometheus_text"]

_COUNTERS = {
    "generations": ("num_generations", "Generations started."),
    "generation_tokens": ("num_tokens", "Output tokens."),
    "prompt_tokens": ("num_prompt_tokens", "Prompt tokens."),
    "reused_prompt_tokens": ("num_reused_prompt_tokens", "Prompt tokens that the caches held already."),
    "spec_steps": ("num_spec_steps", "Rounds: target passes that verified drafts."),
    "draft_calls": ("num_draft_calls", "Draft forwards."),
    "draft_tokens": ("num_draft_tokens", "Draft tokens verified."),
    "accepted_draft_tokens": ("num_accepted_draft_tokens", "Draft tokens accepted."),
    "fallback_tokens": ("num_fallback_tokens", "Tokens of plain steps, where drafting does not pay."),
    "host_processed_tokens": ("num_host_processed_tokens", "Tokens whose scores were processed on the host."),
    "generation_seconds": ("seconds", "Wall time of generations."),
}


def prometheus_text(metrics: DecodeMetrics) -> str:
    """Counters named `radar_..._total`; of a running total such as `Decoder.metrics`, so that they never fall.

    Averages are ratios of counters: the mean acceptance length is
    `1 + rate(radar_accepted_draft_tokens_total) / rate(radar_spec_steps_total)`.
    """
    engine = f'engine="{metrics.engine}"'
    lines: list[str] = []
    for name, (attribute, text) in _COUNTERS.items():
        lines += _family(name, text, {engine: getattr(metrics, attribute)})
    parts = {f'{engine},part="{name}"': seconds for name, seconds in metrics.seconds_by_part.items()}
    lines += _family("part_seconds", "Wall time by part of a round.", parts)
    stops = {f'{engine},draft_calls="{calls}"': rounds for calls, rounds in metrics.stop_histogram.items()}
    lines += _family("stops", "Rounds by number of draft calls.", stops)
    deepest = max(metrics.acceptance_histogram, default=0)
    reached = {
        f'{engine},position="{position}"': sum(n for a, n in metrics.acceptance_histogram.items() if a >= position)
        for position in range(1, deepest + 1)
    }
    lines += _family("accepted_draft_tokens_per_position", "Rounds that accepted a draft token at a depth.", reached)
    return "\n".join(lines) + "\n"


def _family(name: str, text: str, samples: Mapping[str, float]) -> list[str]:
    full = f"radar_{name}_total"
    rows = [f"{full}{{{labels}}} {value}" for labels, value in samples.items()]
    return [f"# HELP {full} {text}", f"# TYPE {full} counter", *rows] if rows else []
