"""What the target accepts of a draft tree for every stop: along one text, or in distribution over its sampling.

A tree drafted to `max_calls` holds the trees of all earlier stops: stopping after call n verifies the best
`total_tokens - 1` of the candidates that n calls have written. Everything here takes B rounds at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.tree import DraftTree
from radar.replay.rounds import RoundDataset, RoundsHeader

__all__ = [
    *("Candidates", "Text", "accept_lengths", "acceptance_distribution", "path_probabilities", "path_slots"),
    *("places", "verified"),
]

NEVER = 2**15 - 1  # the place of a candidate that is not drafted


class Candidates(NamedTuple):
    """All candidates of B rounds drafted to `max_calls`, on the CPU: [B, C] as in `DraftTree`, level after level."""

    scores: Tensor
    tokens: Tensor
    parents: Tensor

    @classmethod
    def of(cls, tree: DraftTree) -> Candidates:
        """A copy that later rounds do not change."""
        return cls(*(part.detach().to("cpu", copy=True) for part in (tree.scores, tree.tokens, tree.parents)))


class Text(NamedTuple):
    """A text and its R rounds.

    Attributes:
        prompt_length: tokens before it.
        tokens: to the limit, or to the first of `ends`.
        ends: tokens that end a text.
        starts: how many of the tokens were known when each round began.
        tree: the rounds' candidates.
        probabilities: [R, C] float32, the target's probability of every candidate after its parent's path, at the
            temperature of the sampling; none at temperature 0.
    """

    prompt_length: int
    tokens: list[int]
    ends: frozenset[int]
    starts: list[int]
    tree: Candidates
    probabilities: Tensor

    def rounds(self, prompt: int, header: RoundsHeader, fingerprint: Tensor) -> RoundDataset:
        """What trees of the header's size would have had accepted, as rounds of this prompt.

        Rounds that the limit cut short are left out. An end token counts as the target's own token of its round,
        drafted or not: nothing follows it, so a round gains one token more than it has accepted, always.
        """
        config, calls, distribution = header.tree, header.tree.max_calls, None
        ended = self.tokens[-1] in self.ends
        starts = torch.tensor([n for n in self.starts if ended or len(self.tokens) - n >= calls], dtype=torch.int64)
        tree = Candidates(*(part[: len(starts)] for part in self.tree))
        known = [-1 if token in self.ends else token for token in self.tokens]
        continuation = torch.tensor(known + [-1] * calls).unfold(0, calls, 1)[starts]
        order, slots = places(tree, config), path_slots(tree, config, continuation)
        chosen, by_nodes = order < config.total_tokens - 1, dict[str, Tensor]()
        if header.nodes:
            by_nodes["accepted_by_nodes"] = _accepted_by_nodes(order, slots, header.nodes)
            by_nodes["mass_by_nodes"] = _by_nodes(order, tree.scores.double().exp(), header.nodes)
        if header.temperature > 0:
            of_ends = torch.isin(tree.tokens, torch.tensor(sorted(self.ends), dtype=torch.int64))
            inside = self.probabilities[: len(starts)].masked_fill(of_ends, 0.0)
            distribution = acceptance_distribution(tree, config, chosen, inside).float()
            if header.nodes:
                reached = path_probabilities(tree, config, torch.where(order.amin(1) < NEVER, inside.double(), 0.0))
                by_nodes["expected_by_nodes"] = _by_nodes(order, reached, header.nodes)
        return RoundDataset(
            scores=torch.stack([tree.scores[:, one].topk(config.tree_top_k).values for one in config.levels()], dim=1),
            accept_lengths=accept_lengths(chosen, slots),
            prompt=torch.full_like(starts, prompt),
            position=self.prompt_length + starts,
            header=header,
            distribution=distribution,
            path=tree.scores.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -torch.inf),
            prompts={prompt: fingerprint},
            **by_nodes,
        )


def places(tree: Candidates, config: TreeConfig) -> Tensor:
    """The place of each candidate among those that call 1 to max_calls have written, the best is 0: [B, max_calls, C]
    int16; `NEVER` where it has not been drafted by then.

    Stopping after a call verifies the first `total_tokens - 1` places, as `DraftTree.select` does: the best by score,
    of equals the lower slot.

    Args:
        tree: rounds drafted to `max_calls`.
        config: its shape; the candidates are the same whatever its `total_tokens`.
    """
    depths = torch.empty(config.num_candidates, dtype=torch.int64)
    for depth, level in enumerate(config.levels(), start=1):
        depths[level] = depth
    scores, order = tree.scores.sort(dim=1, descending=True, stable=True)
    calls = torch.arange(1, config.max_calls + 1)[:, None]
    there = (depths[order][:, None] <= calls) & (scores > -torch.inf)[:, None]  # [B, max_calls, C], best first
    place = torch.where(there, there.cumsum(2, dtype=torch.int16) - 1, NEVER)
    return torch.empty_like(place).scatter_(2, order[:, None].expand_as(place), place)


def verified(tree: Candidates, config: TreeConfig) -> Tensor:
    """Which candidates are verified when the round stops after call 1 to max_calls [B, max_calls, C] bool."""
    return places(tree, config) < config.total_tokens - 1


def _by_nodes(order: Tensor, probabilities: Tensor, nodes: Sequence[int]) -> Tensor:
    """Sum of what the first `n - 1` of the `places` are worth, for each n: [B, C] -> [B, max_calls, nodes] float32."""
    worth = probabilities[:, None].expand(order.shape)
    return torch.stack([torch.where(order < n - 1, worth, 0.0).sum(2) for n in nodes], -1).float()


def _accepted_by_nodes(order: Tensor, slots: Tensor, nodes: Sequence[int]) -> Tensor:
    """`accept_lengths` for each number of nodes [B, max_calls, nodes] uint8, by `places` and `path_slots`."""
    place = order.gather(2, slots.clamp(min=0)[:, None].expand(-1, order.shape[1], -1))
    place = torch.where(slots[:, None] >= 0, place, NEVER)
    return torch.stack([(place < n - 1).sum(2) for n in nodes], -1).to(torch.uint8)


def acceptance_distribution(tree: Candidates, config: TreeConfig, chosen: Tensor, probabilities: Tensor) -> Tensor:
    """P(accepted length = l) for a stop after call 1 to max_calls: [B, max_calls, max_calls + 1] float64.

    Draft trees are deterministic, so a node is accepted with the target's own probability of its path, and the nodes of
    one depth exclude each other: P(length >= l) is the sum over the verified nodes at depth l. (RADAR, arXiv
    2512.14069, section "offline data", which walks every tree instead.)

    Args:
        tree, config: as for `verified`, which gives `chosen`.
        probabilities: [B, C] the target's probability of each candidate's token after its parent's path, at the
            sampling temperature. Only those of candidates that some stop verifies are read.
    """
    path = path_probabilities(tree, config, torch.where(chosen.any(1), probabilities.double(), 0.0))
    at_least = torch.ones(*chosen.shape[:2], chosen.shape[1] + 1, dtype=torch.float64)
    for depth, level in enumerate(config.levels(), start=1):
        at_least[:, :, depth] = (chosen[:, :, level].double() @ path[:, level, None])[..., 0]
    beyond = torch.nn.functional.pad(at_least[:, :, 1:], (0, 1))
    return (at_least - beyond).clamp(min=0.0)  # rounding can leave -1e-17


def path_probabilities(tree: Candidates, config: TreeConfig, probabilities: Tensor) -> Tensor:
    """The probability of each candidate's whole path [B, C], from that of its own token after its parent's path."""
    path = probabilities.clone()
    for level in [*config.levels()][1:]:  # parents stand in lower slots, one level up
        path[:, level] *= path.gather(1, tree.parents[:, level].clamp(min=0))  # -1: never drafted
    return path


def path_slots(tree: Candidates, config: TreeConfig, continuation: Tensor) -> Tensor:
    """Where the text goes through the tree: the candidate at each depth [B, max_calls], -1 from where it leaves it.

    `continuation`: [B, max_calls] the target's tokens after the root; -1 where there is none.
    """
    parent = torch.full_like(continuation[:, 0], -1)
    alive, slots = torch.ones_like(parent, dtype=torch.bool), []
    for level, token in zip(config.levels(), continuation.unbind(1), strict=True):
        here = (tree.tokens[:, level] == token[:, None]) & (tree.parents[:, level] == parent[:, None])
        alive = alive & here.any(1)
        parent = level.start + here.long().argmax(1)  # siblings differ: there is no second one
        slots.append(torch.where(alive, parent, -1))
    return torch.stack(slots, 1)


def accept_lengths(chosen: Tensor, slots: Tensor) -> Tensor:
    """Draft tokens accepted when the round had stopped after call 1 to max_calls [B, max_calls] int64, by what
    `verified` chose and the `path_slots`: a verified node's ancestors are verified."""
    there = chosen.gather(2, slots.clamp(min=0)[:, None].expand(-1, chosen.shape[1], -1))
    return (there & (slots >= 0)[:, None]).sum(2)
