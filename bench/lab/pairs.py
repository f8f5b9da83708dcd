"""A laboratory pair: the small one from its folder, the wide one on the device, and what a round of that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.lab.widen import WidePair, widen
from bench.shapes import Geometry
from radar import AutoregressiveDecoder, RadarDecoder, RadarPolicy, TreeConfig
from radar.draft.checkpoint import load_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.policy.base import StopPolicy
from radar.policy.lstm import PolicyNetwork
from radar.target.load import load_model, load_tokenizer
from radar.tools.machine import device_name
from radar.tools.profile import profile_round
from radar.train.costs import CostTable

__all__ = ["SmallPair", "Wide", "load_pair", "measure_costs"]


@dataclass(frozen=True)
class SmallPair:
    """A trained pair as it is on disk."""

    model: Any
    draft: Eagle3Draft
    tokenizer: Any


def load_pair(folder: Path, device: torch.device, dtype: torch.dtype) -> SmallPair:
    """`folder` holds `target` (with its tokenizer) and `draft`."""
    model = load_model(str(folder / "target"), device=device, dtype=dtype, progress=False)
    size = int(model.config.hidden_size)
    draft = load_draft(folder / "draft", target_hidden_size=size, device=device, dtype=dtype)
    return SmallPair(model, draft, load_tokenizer(str(folder / "target")))


class Wide:
    """The widened pair and its decoders, each made once.

    Args:
        folder: of the small pair.
        geometry: to widen to.
        max_length: tokens that the decoders' caches hold.
    """

    def __init__(self, folder: Path, geometry: Geometry, *, device: torch.device, max_length: int) -> None:
        self.device, self.max_length = device, max_length
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        small = load_pair(folder, torch.device("cpu"), torch.float32)
        self.tokenizer = small.tokenizer
        self.pair: WidePair = widen(small.model, small.draft, geometry, device=device, dtype=self.dtype)
        self._decoders: dict[tuple[TreeConfig, str], RadarDecoder] = {}

    @cached_property
    def autoregressive(self) -> AutoregressiveDecoder:
        return AutoregressiveDecoder(self.pair.model, tokenizer=self.tokenizer, max_length=self.max_length)

    def decoder(self, tree: TreeConfig, policy: StopPolicy, *, role: str = "") -> RadarDecoder:
        """The decoder of a tree's shape; it keeps the policy that it was made with until it is given another.

        A decoder keeps the graphs of four policies: `role` tells decoders of one shape apart, so that none is captured
        again and again.
        """
        if (tree, role) not in self._decoders:
            self._decoders[tree, role] = RadarDecoder(
                self.pair.model,
                draft=self.pair.draft,
                tokenizer=self.tokenizer,
                policy=policy,
                tree=tree,
                max_length=self.max_length,
                fallback=False,
            )
        return self._decoders[tree, role]


def measure_costs(
    wide: Wide, trees: Sequence[TreeConfig], *, contexts: Sequence[int], name: str, repeats: int = 20
) -> CostTable:
    """The cost table of the wide pair on this device.

    Args:
        trees: by ascending total_tokens; draft calls are timed on the one with the largest max_calls.
        contexts: committed tokens, ascending.
        name: of the pair, goes into the table.
    """
    network = RadarPolicy(PolicyNetwork())
    deepest = max(trees, key=lambda tree: tree.max_calls)
    verify, rest, calls, decision = [], 0.0, (0.0,), 0.0
    for tree in trees:
        engine = wide.decoder(tree, network).engine
        engine.set_policy(network)
        profiles = [
            profile_round(engine, prefix=context, calls=tree.max_calls, repeats=repeats) for context in contexts
        ]
        verify.append(tuple(_seconds(profile.verify) for profile in profiles))
        if tree == deepest:
            first = profiles[0]
            calls = tuple(_seconds(value) for value in first.draft_calls)
            decision, rest = _seconds(first.decision), _seconds(first.select + first.accept + first.commit)
    return CostTable(
        draft_call_seconds=calls,
        nodes=tuple(tree.total_tokens for tree in trees),
        contexts=tuple(contexts),
        verify_seconds=tuple(verify),
        decision_seconds=decision,
        rest_seconds=rest,
        device=device_name(wide.device),
        pair=name,
    )


def _seconds(milliseconds: float) -> float:
    return max(milliseconds, 0.0) / 1000  # a difference of two medians may fall below zero by noise
