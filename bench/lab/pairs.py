"""A laboratory pair: the small one from its folder, the wide one on the device, and what a round of that costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.lab.widen import WidePair, widen
from bench.shapes import Geometry
from radar import AutoregressiveDecoder, RadarDecoder, RadarPolicy, TreeConfig
from radar.draft.checkpoint import load_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.policy.base import StopPolicy
from radar.policy.network import PolicyNetwork
from radar.target.load import load_model, load_tokenizer
from radar.tools.costs import CostTable
from radar.tools.machine import device_name
from radar.tools.profile import cost_table, profile_round

__all__ = ["SmallPair", "Wide", "load_pair", "measure_costs"]


class SmallPair(NamedTuple):
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
    """The pair of a folder, widened, and its decoders, each made once; their caches hold `max_length` tokens."""

    def __init__(self, folder: Path, geometry: Geometry, *, device: torch.device, max_length: int) -> None:
        self.device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        small = load_pair(folder, torch.device("cpu"), torch.float32)
        self.pair: WidePair = widen(small.model, small.draft, geometry, device=device, dtype=dtype)
        self._options: dict[str, Any] = {"tokenizer": small.tokenizer, "max_length": max_length}
        self._decoders: dict[tuple[TreeConfig, str], RadarDecoder] = {}

    @cached_property
    def autoregressive(self) -> AutoregressiveDecoder:
        return AutoregressiveDecoder(self.pair.model, **self._options)

    def decoder(self, tree: TreeConfig, policy: StopPolicy, *, role: str = "") -> RadarDecoder:
        """The decoder of a tree's shape, with this policy.

        A decoder keeps the graphs of four policies: `role` tells decoders of one shape apart, so that none is captured
        again and again.
        """
        if (tree, role) not in self._decoders:
            self._decoders[tree, role] = RadarDecoder(
                self.pair.model, draft=self.pair.draft, policy=policy, tree=tree, fallback=False, **self._options
            )
        self._decoders[tree, role].policy = policy
        return self._decoders[tree, role]


def measure_costs(
    wide: Wide, trees: Sequence[TreeConfig], *, contexts: Sequence[int], name: str, repeats: int = 20
) -> CostTable:
    """The cost table of the wide pair on this device.

    Args:
        trees: draft calls are timed on the one with the largest max_calls.
        contexts: committed tokens.
        name: of the pair, goes into the table.
    """
    network = RadarPolicy(PolicyNetwork())
    profiles = [
        profile_round(wide.decoder(tree, network).engine, prefix=context, calls=tree.max_calls, repeats=repeats)
        for tree in trees
        for context in contexts
    ]
    return cost_table(profiles, device=device_name(wide.device), pair=name)
