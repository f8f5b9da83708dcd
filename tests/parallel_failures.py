"""Jobs of two ranks that come to a bad end; see `parallel_cases.py`."""

import os
from dataclasses import replace

import torch
from parallel_cases import BREAKING, PROMPTS, break_once

from radar import FixedDepth, RadarDecoder
from radar.engine.eager import EagerEngine
from radar.target.split import SummedLinear


def _tiny(folder):
    return RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, tp_plan="auto", max_length=100, policy=FixedDepth(3)
    )


def follower_fails(rank, folder):
    decoder = _tiny(folder)
    if rank:
        break_once(EagerEngine, lambda engine: [BREAKING])
        decoder.follow()
    decoder.generate(PROMPTS[0], max_new_tokens=30)


def ranks_part(rank, folder):
    """Their tokens are the same, and what else a round says is not."""
    decoder, real = _tiny(folder), EagerEngine.round
    if rank:
        EagerEngine.round = lambda engine: replace(real(engine), num_draft_calls=0)
        decoder.follow()
    decoder.generate(PROMPTS[0], max_new_tokens=60)


def leader_fails(rank, folder):
    """Rank 0 alone, in the middle of a forward."""
    decoder = _tiny(folder)
    if rank:
        decoder.follow()
    break_once(SummedLinear, lambda layer: [BREAKING], "whole")
    decoder.generate(PROMPTS[0], max_new_tokens=30)


def leader_raises(rank, folder):
    decoder = _tiny(folder)
    if rank:
        decoder.follow()
        return
    decoder.generate(PROMPTS[0], max_new_tokens=4)
    raise RuntimeError("planted: rank 0 has had enough")


def leader_dies(rank, folder):
    decoder = _tiny(folder)
    if rank:
        decoder.follow()
    os._exit(0)
