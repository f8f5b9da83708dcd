"""Rounds whose path dies after a random level; the scores fall off a cliff there unless something hides it."""

from dataclasses import replace

import torch

from radar.config import TreeConfig
from radar.fit.widths import Width
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable

CALLS, WIDTH = 8, 4
COSTS = CostTable.constant(call=0.3, decision=0.01, rest=3.0)
FREE = COSTS.without_decisions()


def make_rounds(rounds: int = 800, *, noise: float = 0.0, seed: int = 0, per_prompt: int = 8) -> RoundDataset:
    """`noise`: levels by which the cliff that is shown is off; 100 shows nothing."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.randint(0, CALLS + 1, (rounds,), generator=generator)
    level = torch.arange(1, CALLS + 1)
    shown = depth + (torch.randn(rounds, generator=generator) * noise).round().long()
    scores = torch.where(level <= shown[:, None], -0.1 * level, -4.0 - 0.1 * level)
    scores = scores[..., None] - torch.rand(rounds, CALLS, WIDTH, generator=generator).cumsum(-1) * 0.5
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=CALLS))
    accept = torch.minimum(depth[:, None], level)
    prompt, position = torch.arange(rounds) // per_prompt, torch.arange(rounds) % per_prompt * 20
    return RoundDataset(scores, accept, prompt, position, header)


def blind_rounds(accept: torch.Tensor) -> RoundDataset:
    """Rounds [N, T] whose scores say nothing."""
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=accept.shape[1]))
    scores = torch.full((*accept.shape, WIDTH), -1.0)
    return RoundDataset(scores, accept, torch.arange(len(accept)), torch.zeros(len(accept)).long(), header)


def of_beams(beams: int, rounds: RoundDataset, *, call: float) -> Width:
    """Rounds with so many scores a level, whose draft calls take so long."""
    scores = torch.nn.functional.pad(rounds.scores, (0, beams - WIDTH), value=-torch.inf)
    header = replace(rounds.header, tree=replace(rounds.header.tree, tree_top_k=beams))
    costs = replace(FREE, draft_call_seconds=(call,) * len(FREE.draft_call_seconds))
    return Width(replace(rounds, scores=scores, header=header), costs)
