"""Processors of any kind, on the host: one token after another, each with the text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radar.sampling import LogitsProcessor, Sampler, apply_processors
from radar.tree import VerifyTree

__all__ = ["HostProcessing"]


@dataclass(frozen=True)
class HostProcessing:
    """Replaces the sampling of a whole tree by a walk: the processors see the accepted nodes alone, in order.

    So they are called as in plain decoding, once for every token and with no text that was not chosen, and may keep
    state. The sampler's parameters hold what follows them: temperature and filters, no penalty and no bias.

    Attributes:
        processors: called in order as f(input_ids [1, L], scores [1, V]) -> scores [1, V]; empty: scores are kept only.
        ends: whether the text ends with its last token, whose processed scores [V] come with it. Nothing is asked
            behind that. None: it never ends; a generation gives its own.
    """

    processors: tuple[LogitsProcessor, ...]
    ends: Callable[[Sequence[int], Tensor], bool] | None = None

    def choose(self, sampler: Sampler, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor]:
        """The token after `text`, from its logits [V], and the processed scores [V] float32."""
        device = logits.device
        last, root = (torch.tensor([[value]], device=device) for value in (text[-1], 0))
        scores = apply_processors(self.processors, logits[None, None], [text[:-1]], last, root)
        token = sampler.sample(scores, torch.tensor([[len(text)]], device=device))
        return int(token), scores[0, 0]

    def walk(
        self, sampler: Sampler, nodes: VerifyTree, logits: Tensor, text: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose a token after the root, go to the child that has it, and so on while there is one.

        Args:
            sampler: after the processors.
            nodes: a tree of one sequence.
            logits: [1, N, V] after each node.
            text: prompt and output; its last token is the root.

        Returns:
            The target's token after each node [1, N] (-1 where the walk did not come), and of each token on the way the
            logits and the processed scores [n, V] float32.
        """
        parents, tokens, valid = (x[0].tolist() for x in (nodes.parents, nodes.draft_tokens, nodes.valid))
        children = {(parents[i], tokens[i]): i for i in range(1, len(tokens)) if valid[i]}
        chosen = [-1] * len(tokens)
        path, kept, text = [], [], list(text)
        node: int | None = 0
        while node is not None:
            token, scores = self.choose(sampler, logits[0, node], text)
            chosen[node] = token
            path.append(node)
            kept.append(scores)
            text.append(token)
            node = children.get((node, token))
            ended = self.ends is not None and self.ends(text, scores)
            while node is not None and ended:  # nodes behind the end need some token, and nothing is asked
                chosen[node] = token
                node = children.get((node, token))
        return torch.tensor([chosen], device=logits.device), logits[0, path].float(), torch.stack(kept)
