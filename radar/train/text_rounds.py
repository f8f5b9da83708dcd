"""A decoded text's rounds as they are recorded: scores, signals, and what every stop would have had accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radar.train.acceptance import Candidates, accept_lengths, acceptance_distribution, expected_lengths, verified
from radar.train.drafted import Drafted
from radar.train.rounds import RecordedSignals, RoundDataset, RoundsHeader

__all__ = ["TextRounds", "level_scores"]


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
        ended, known, accepted, entropy = text[-1] in ends, 0, -1, 0.0
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)
        rows, self.trees, probabilities, entropies = [], [], [], []
        for item in drafted:
            if item.tree is not None and (len(text) - known >= calls or ended):
                continuation = [-1 if token in ends else token for token in text[known : known + calls]]
                rows.append([known, accepted, *continuation, *[-1] * (calls - len(continuation))])
                self.trees.append(item.tree)
                entropies.append(entropy)
                if item.probabilities is not None:
                    probabilities.append(item.probabilities)
            if item.tree is not None and not every_token:
                accepted = len(item.tokens) - 1
            known, entropy = known + len(item.tokens), item.entropy
        facts = torch.tensor(rows, dtype=torch.int64).view(-1, 2 + calls)
        self.known, self.last_accepted, self.continuation = facts[:, 0], facts[:, 1], facts[:, 2:]
        self.entropies, self.positions = torch.tensor(entropies), prompt_length + self.known
        self.probabilities = torch.cat(probabilities) if probabilities else None

    def rounds(self, prompt: int, header: RoundsHeader, fingerprint: Tensor) -> RoundDataset:
        """What trees of the header's size would have had accepted, as rounds of this prompt."""
        calls, k = header.tree.max_calls, header.tree.tree_top_k
        scores, lengths = torch.zeros(0, calls, k), torch.zeros(0, calls, dtype=torch.int64)
        expected, spread = torch.zeros(0, calls), torch.zeros(0, calls, calls + 1)
        if self.trees:
            tree = Candidates.stack(self.trees, header.tree)
            chosen = verified(tree)
            scores, lengths = level_scores(tree), accept_lengths(tree, chosen, self.continuation)
            expected = expected_lengths(tree, chosen)
            if self.probabilities is not None:
                inside = self.probabilities.masked_fill(torch.isin(tree.tokens, self._ends), 0.0)
                spread = acceptance_distribution(tree, chosen, inside).float()
        signals = RecordedSignals(expected, self.last_accepted, self.entropies, self.known)
        number, distribution = torch.full_like(self.known, prompt), spread if header.temperature > 0 else None
        return RoundDataset(
            scores, lengths, number, self.positions, header, signals, distribution, {prompt: fingerprint}
        )


def level_scores(tree: Candidates) -> Tensor:
    """The beams' scores [B, max_calls, k]: what a policy reads after each call."""
    k = tree.config.tree_top_k
    levels = (tree.scores[:, level].topk(k, dim=1).values for level in tree.levels())
    return torch.stack(list(levels), dim=1)
