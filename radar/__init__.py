"""Lossless speculative decoding with EAGLE-3 draft trees and a learned stop policy (RADAR, arXiv 2512.14069)."""

from radar.autoregressive import AutoregressiveDecoder
from radar.config import DraftConfig, TreeConfig
from radar.decoder import RadarDecoder
from radar.generation import GenerationOutput, TextStream
from radar.metrics import DecodeMetrics, Round
from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.policy.lstm import RadarPolicy
from radar.sampling import SamplingParams

__all__ = [
    "AutoregressiveDecoder",
    "DecodeMetrics",
    "DraftConfig",
    "FixedDepth",
    "GenerationOutput",
    "RadarDecoder",
    "RadarPolicy",
    "Round",
    "SamplingParams",
    "StopPolicy",
    "TextStream",
    "Threshold",
    "TreeConfig",
]
