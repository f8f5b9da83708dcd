"""Record rounds at full depth, with the accepted length for every stop, to train and replay policies on.

At temperature 0 the target's continuation decides what any tree would have had accepted. So a prompt is decoded to its
end with every round drafted to `max_calls`, and each round's candidates are then followed along the text that came.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from radar.config import TreeConfig
from radar.decoder import RadarDecoder
from radar.policy.base import FixedDepth
from radar.train.dataset import RoundsHeader, RoundWriter
from radar.tree import DraftTree

__all__ = ["accept_lengths", "level_scores", "record"]


def level_scores(scores: Tensor, config: TreeConfig) -> Tensor:
    """Candidates' scores [C] -> the beams' [max_calls, k]: what a policy reads after each call."""
    k = config.tree_top_k
    first, rest = scores[:k], scores[k:].view(config.max_calls - 1, k * k)
    return torch.cat((first.sort(descending=True).values[None], rest.topk(k, dim=1).values))


def accept_lengths(tree: DraftTree, continuation: Sequence[int]) -> Tensor:
    """Draft tokens accepted when the round had stopped after call 1 to max_calls [max_calls], for the first batch row.

    Args:
        tree: a round drafted to `max_calls`.
        continuation: the target's tokens after the root, as many as are known.
    """
    config = tree.config
    k, scores, tokens, parents = config.tree_top_k, tree.scores[0], tree.tokens[0], tree.parents[0]
    budget = config.total_tokens - 1
    ends = [k + call * k * k for call in range(config.max_calls)]  # slots that exist after each call
    lengths = torch.zeros(config.max_calls, dtype=torch.int64)
    alive = torch.ones(config.max_calls, dtype=torch.bool)
    parent, begin = -1, 0
    for depth, token in enumerate(continuation[: config.max_calls]):
        level = slice(begin, ends[depth])
        found = ((tokens[level] == token) & (parents[level] == parent)).nonzero().flatten().tolist()
        if not found:
            break
        parent, begin = begin + found[0], ends[depth]
        # a candidate is verified if fewer than `budget` stand before it: by score, then by slot
        ahead = scores > scores[parent]
        ahead[:parent] |= scores[:parent] == scores[parent]
        rank = ahead.cumsum(0)[torch.tensor(ends) - 1]
        alive &= rank < budget
        alive[:depth] = False  # those stops came before this level
        lengths += alive.long()
    return lengths


def record(
    decoder: RadarDecoder,
    prompts: Sequence[Sequence[int]],
    out: str | os.PathLike[str],
    *,
    max_new_tokens: int = 192,
    metadata: dict[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode the prompts and append their rounds to `out`; prompts that it holds already are skipped.

    Args:
        decoder: its tree's `max_calls` is the depth recorded; its policy is replaced by `FixedDepth(max_calls)`.
        prompts: token ids; the index of a prompt is its id in the file.
        out: data set to write or go on with; see `radar.train.dataset`.
        max_new_tokens: output per prompt. Rounds whose continuation is cut off by it are left out.
        metadata: facts for the header.
        progress: show a bar on stderr.

    Returns:
        What was recorded: prompts, rounds, mean accepted length for every stop.
    """
    decoder.policy = FixedDepth(decoder.tree.max_calls)
    header = RoundsHeader(decoder.tree, temperature=0.0, metadata=metadata or {})
    total = torch.zeros(decoder.tree.max_calls, dtype=torch.float64)
    rounds = 0
    with RoundWriter(out, header) as writer, tqdm(prompts, desc="prompts", disable=not progress) as bar:
        for index, prompt in enumerate(bar):
            if index in writer.done:
                continue
            positions, scores, lengths = _record_prompt(decoder, prompt, max_new_tokens)
            writer.write_prompt(index, positions, scores, lengths)
            rounds += len(lengths)
            total += lengths.double().sum(0)
            bar.set_postfix(rounds=rounds)
        done = len(writer.done)
    mean = (total / max(1, rounds)).tolist()
    return {
        "out": str(out),
        "prompts_done": done,
        "new_rounds": rounds,
        "mean_accept_length_by_calls": [round(value, 4) for value in mean],
    }


def _record_prompt(decoder: RadarDecoder, prompt: Sequence[int], max_new_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """(context lengths [n], beam scores [n, max_calls, k], accepted lengths [n, max_calls]) of one generation."""
    fits = len(prompt) + max_new_tokens <= decoder.max_length
    text: list[int] = []
    snapshots: list[tuple[int, DraftTree]] = []
    for item in decoder.rounds(prompt, max_new_tokens=max_new_tokens if fits else None):
        if not item.is_prefill:
            snapshots.append((len(text), decoder.engine.drafter.tree.snapshot()))
        text.extend(item.tokens)
    ended = text[-1] in decoder.eos_token_ids
    calls = decoder.tree.max_calls
    positions, scores, lengths = [], [], []
    for known, tree in snapshots:
        continuation = text[known:]
        if len(continuation) < calls and not ended:
            continue
        positions.append(len(prompt) + known)
        scores.append(level_scores(tree.scores[0], tree.config))
        lengths.append(accept_lengths(tree, continuation))
    if not positions:
        k = decoder.tree.tree_top_k
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, calls, k), torch.zeros(0, calls, dtype=torch.int64)
    return torch.tensor(positions), torch.stack(scores), torch.stack(lengths)
