"""A decoded text's rounds as they are recorded: scores, and what every stop would have had accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radar.train.acceptance import Candidates, accept_lengths, acceptance_distribution, verified
from radar.train.drafted import Drafted
from radar.train.rounds import RoundDataset, RoundsHeader

__all__ = ["TextRounds"]


class TextRounds:
    """The rounds of a text whose continuation is known; those that its limit cut short are left out.

    An end token counts as the target's own token of its round, drafted or not: nothing follows it, so a round gains one
    token more than it has accepted, always.

    Args:
        drafted: the prompt's pass and all rounds.
        prompt_length: tokens.
        calls: `max_calls`.
        ends: the end tokens.
    """

    def __init__(self, drafted: Sequence[Drafted], prompt_length: int, calls: int, *, ends: frozenset[int]) -> None:
        text = [token for item in drafted for token in item.tokens]
        starts = torch.tensor([0, *(len(item.tokens) for item in drafted)]).cumsum(0).tolist()
        whole = [
            (known, item)
            for known, item in zip(starts, drafted, strict=False)
            if item.tree is not None and (len(text) - known >= calls or text[-1] in ends)
        ]
        padded = [-1 if token in ends else token for token in text] + [-1] * calls
        self.continuation = torch.tensor([padded[known : known + calls] for known, _ in whole]).view(-1, calls)
        self.positions = prompt_length + torch.tensor([known for known, _ in whole], dtype=torch.int64)
        self.trees = [item.tree for _, item in whole if item.tree is not None]
        self._probabilities = [item.probabilities for _, item in whole if item.probabilities is not None]
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)

    def rounds(self, prompt: int, header: RoundsHeader, fingerprint: Tensor) -> RoundDataset:
        """What trees of the header's size would have had accepted, as rounds of this prompt."""
        calls, k = header.tree.max_calls, header.tree.tree_top_k
        scores, lengths = torch.zeros(0, calls, k), torch.zeros(0, calls, dtype=torch.int64)
        spread = torch.zeros(0, calls, calls + 1)
        if self.trees:
            tree = Candidates.stack(self.trees, header.tree)
            chosen = verified(tree)
            scores = torch.stack([tree.scores[:, level].topk(k, dim=1).values for level in tree.levels()], dim=1)
            lengths = accept_lengths(tree, chosen, self.continuation)
            if self._probabilities:
                inside = torch.cat(self._probabilities).masked_fill(torch.isin(tree.tokens, self._ends), 0.0)
                spread = acceptance_distribution(tree, chosen, inside).float()
        number, distribution = torch.full_like(self.positions, prompt), spread if header.temperature > 0 else None
        return RoundDataset(scores, lengths, number, self.positions, header, distribution, {prompt: fingerprint})
