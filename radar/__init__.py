"""Lossless speculative decoding with EAGLE-3 draft trees and a learned stop policy (RADAR, arXiv 2512.14069).

Names are imported when they are asked for, so that `import radar` loads neither torch nor transformers; `__init__.pyi`
says the same to type checkers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AsyncTextStream": "generation.text",
    "AutoregressiveDecoder": "decoder",
    "DecodeMetrics": "metrics",
    "DraftConfig": "draft.config",
    "FixedDepth": "policy.base",
    "GenerationOutput": "generation.sequence",
    "NodesByMass": "policy.by_mass",
    "RadarDecoder": "decoder",
    "RadarGenerate": "custom_generate",
    "RadarGenerateOutput": "generation.hf",
    "RadarPolicy": "policy.lstm",
    "Round": "metrics",
    "SamplingParams": "config",
    "StopPolicy": "policy.base",
    "TextStream": "generation.text",
    "Threshold": "policy.base",
    "TreeConfig": "config",
    "prometheus_text": "tools.prometheus",
    "radar_generate": "custom_generate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'radar' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"radar.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
