"""Processors of any kind, on the host: one token after another, each with the text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radar.draft.tree import VerifyTree
from radar.engine.sampler import Sampler
from radar.errors import UsageError

__all__ = ["HostProcessing", "LogitsProcessor", "apply_processors"]

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # (input_ids [1, L], scores [1, V]) -> scores [1, V]


@dataclass(frozen=True)
class HostProcessing:
    """Replaces the sampling of a whole tree by a walk: the processors see the accepted nodes alone, in order.

    So they are called as in plain decoding, once for every token and with no text that was not chosen, and may keep
    state. The sampler's parameters hold what follows them: temperature and filters, no penalty and no bias.

    Attributes:
        processors: called in order as f(input_ids [1, L], scores [1, V]) -> scores [1, V]; empty: scores are kept only.
        keep: whether logits and processed scores stay with the tokens, and criteria get them: 8 bytes x V a token.
        ends: whether the text ends with its last token, whose processed scores [V] come with it if they are kept.
            Nothing is asked behind that. None: it never ends; a generation gives its own.
    """

    processors: tuple[LogitsProcessor, ...]
    keep: bool = False
    ends: Callable[[Sequence[int], Tensor | None], bool] | None = None

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
            ended = token >= 0 and self.ends is not None and self.ends(text, scores if self.keep else None)
            while node is not None and ended:  # nodes behind the end need some token, and nothing is asked
                chosen[node] = token
                node = children.get((node, token))
        return torch.tensor([chosen], device=logits.device), logits[0, path].float(), torch.stack(kept)


def apply_processors(
    processors: Sequence[LogitsProcessor],
    logits: Tensor,
    committed_ids: Sequence[Sequence[int]],
    draft_tokens: Tensor,
    parents: Tensor,
) -> Tensor:
    """Run processors of any kind (transformers' `LogitsProcessor`) over the nodes of a tree, each with its own path.

    Slow: a plain loop, driven by the host, with one call a node and processor. What `SamplingParams` can say needs none
    of it.

    Args:
        processors: called in order as f(input_ids [1, L + depth + 1], scores [1, V]) -> scores [1, V].
        logits: [B, N, V]; computed in float32.
        committed_ids: of each sequence the text before the root, prompt included: L ids.
        draft_tokens: [B, N] int64, the nodes' own tokens; node 0 is the root.
        parents: [B, N] node index, smaller than the node's own; the root's is 0.

    Returns:
        [B, N, V] float32.

    Raises:
        UsageError: if a processor returns something else than scores.
    """
    processed = logits.float().clone()
    for batch, (text, tokens, above) in enumerate(
        zip(committed_ids, draft_tokens.tolist(), parents.tolist(), strict=True)
    ):
        paths: list[list[int]] = []
        for node, token in enumerate(tokens):
            paths.append([*(paths[above[node]] if node else text), token])
            input_ids = torch.tensor([paths[node]], dtype=torch.int64, device=logits.device)
            scores = processed[batch, node][None]
            for processor in processors:
                scores = _checked(processor, processor(input_ids, scores), scores.shape)
            processed[batch, node] = scores[0]
    return processed


def _checked(processor: LogitsProcessor, found: object, shape: torch.Size) -> Tensor:
    if isinstance(found, Tensor) and found.shape == shape and found.is_floating_point():
        return found
    name = getattr(processor, "__name__", type(processor).__name__)
    what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise UsageError(f"the logits processor {name} must return a float tensor {list(shape)}; it returned {what}")
