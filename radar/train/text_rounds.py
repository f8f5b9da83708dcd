"""A decoded text's rounds as they are recorded: scores, signals, and what every stop would have had accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.train.acceptance import Candidates, accept_lengths, acceptance_distribution, expected_lengths, verified
from radar.train.dataset import RecordedSignals
from radar.train.drafted import Drafted

__all__ = ["Recorded", "TextRounds", "level_scores"]


class Recorded(NamedTuple):
    """n rounds of one generation; shapes as in `RoundDataset`."""

    positions: Tensor
    scores: Tensor
    lengths: Tensor
    signals: RecordedSignals
    distribution: Tensor | None


class TextRounds:
    """The rounds of a text whose continuation is known; those that its limit cut short are left out.

    An end token counts as the target's own token of its round, drafted or not: nothing follows it, so a round gains one
    token more than it has accepted, always.

    Args:
        drafted: the prompt's pass and all rounds.
        prompt_length: tokens.
        calls: `max_calls`.
        ends: the end tokens.
        every_token: a round begins at every token, so none follows another.
    """

    def __init__(
        self, drafted: Sequence[Drafted], prompt_length: int, calls: int, *, ends: frozenset[int], every_token: bool
    ) -> None:
        text = [token for item in drafted for token in item.tokens]
        ended = text[-1] in ends
        known, accepted, entropy = 0, -1, 0.0
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)
        rows, self.trees, probabilities, entropies = [], [], [], []
        for item in drafted:
            if item.tree is not None and (len(text) - known >= calls or ended):
                continuation = [-1 if token in ends else token for token in text[known : known + calls]]
                rows.append([known, accepted, *continuation, *[-1] * (calls - len(continuation))])
                self.trees.append(item.tree)
                probabilities.append(item.probabilities)
                entropies.append(entropy)
            if item.tree is not None and not every_token:
                accepted = len(item.tokens) - 1
            known, entropy = known + len(item.tokens), item.entropy
        facts = torch.tensor(rows, dtype=torch.int64).view(-1, 2 + calls)
        self.known, self.last_accepted, self.continuation = facts[:, 0], facts[:, 1], facts[:, 2:]
        self.entropies, self.positions = torch.tensor(entropies), prompt_length + self.known
        found = [one for one in probabilities if one is not None]
        self.probabilities = torch.cat(found) if found else None

    def rounds(self, config: TreeConfig) -> Recorded:
        """What trees of one size would have had accepted."""
        calls, k = config.max_calls, config.tree_top_k
        if not self.trees:
            none, zeros = torch.zeros(0, calls), torch.zeros(0, calls, dtype=torch.int64)
            empty = RecordedSignals(none, self.last_accepted, self.entropies, self.known)
            return Recorded(self.positions, torch.zeros(0, calls, k), zeros, empty, torch.zeros(0, calls, calls + 1))
        tree = Candidates.stack(self.trees, config)
        chosen = verified(tree)
        signals = RecordedSignals(expected_lengths(tree, chosen), self.last_accepted, self.entropies, self.known)
        spread = None
        if self.probabilities is not None:
            inside = self.probabilities.masked_fill(torch.isin(tree.tokens, self._ends), 0.0)
            spread = acceptance_distribution(tree, chosen, inside).float()
        lengths = accept_lengths(tree, chosen, self.continuation)
        return Recorded(self.positions, level_scores(tree), lengths, signals, spread)


def level_scores(tree: Candidates) -> Tensor:
    """The beams' scores [B, max_calls, k]: what a policy reads after each call."""
    k = tree.config.tree_top_k
    levels = (tree.scores[:, level].topk(k, dim=1).values for level in tree.levels())
    return torch.stack(list(levels), dim=1)
