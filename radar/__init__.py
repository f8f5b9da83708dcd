"""Lossless speculative decoding with EAGLE-3 draft trees and a learned stop policy (RADAR, arXiv 2512.14069)."""

from radar.autoregressive import AutoregressiveDecoder
from radar.config import DraftConfig, TreeConfig
from radar.custom_generate import RadarGenerate, radar_generate
from radar.decoder import RadarDecoder
from radar.generation import GenerationOutput, TextStream
from radar.hf_generate import RadarGenerateOutput
from radar.metrics import DecodeMetrics, Round
from radar.metrics_prometheus import prometheus_text
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
    "RadarGenerate",
    "RadarGenerateOutput",
    "RadarPolicy",
    "Round",
    "SamplingParams",
    "StopPolicy",
    "TextStream",
    "Threshold",
    "TreeConfig",
    "prometheus_text",
    "radar_generate",
]
