"""A generation with all that its rounds drafted, verified and accepted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.decoder import RadarDecoder
from radar.draft.tree import DraftTree, VerifyTree
from radar.errors import UsageError
from radar.metrics import DecodeMetrics, Round, summarize
from radar.policy.base import StopPolicy
from radar.policy.lstm import RadarPolicy

__all__ = ["DraftCall", "Node", "Trace", "TracedRound", "trace"]


class Node(NamedTuple):
    """A candidate of a draft tree.

    Attributes:
        token: id.
        parent: index among the round's nodes, lower than the node's own; -1: the root.
        score: log-probability of the path from the root, as the draft has it.
        expanded: stood in the beam, so that the next call, if there was one, drafted its children.
        verified, accepted: by the target.
    """

    token: int
    parent: int
    score: float
    expanded: bool
    verified: bool
    accepted: bool


class DraftCall(NamedTuple):
    """One draft call, and what the policy made of it.

    Attributes:
        num_candidates: tokens that it proposed.
        mass: summed probability of the beam that it left.
        go_on: a trained policy's probability of another call; None for other policies.
        asked: whether the policy decided; behind the tree's last call nobody is asked.
    """

    num_candidates: int
    mass: float
    go_on: float | None
    asked: bool


@dataclass(frozen=True)
class TracedRound:
    """A round and what stood behind it.

    Attributes:
        round: as the decoder gave it, cut at the end of the text.
        root: the token that the tree hangs from, the last one that was certain; None in the prompt's pass.
        calls: the draft calls; none in the prompt's pass and in plain steps.
        nodes: the candidates that were expanded or verified, and the target's own token where it was drafted.
        target_token: what the target put behind the accepted nodes, also where the text ended before it.
    """

    round: Round
    root: int | None
    calls: list[DraftCall]
    nodes: list[Node]
    target_token: int


@dataclass(frozen=True)
class Trace:
    """A finished generation; `text`, `token_ids` and `finish_reason` are what `decoder.generate` gives."""

    prompt_ids: list[int]
    rounds: list[TracedRound]
    policy: StopPolicy
    text: str
    finish_reason: str
    metrics: DecodeMetrics

    @property
    def token_ids(self) -> list[int]:
        return [token for item in self.rounds for token in item.round.tokens]


class _Seen(NamedTuple):
    tree: DraftTree
    verified: VerifyTree
    tokens: list[int]  # of the round, before any cut


def _look(decoder: RadarDecoder, item: Round) -> _Seen:
    """What the engine holds of its last round; the one place that knows the engine."""
    steps: Any = decoder.engine.steps
    verified = VerifyTree(*(field.cpu() for field in steps.nodes))
    return _Seen(steps.drafter.tree.snapshot(), verified, steps.tokens[0, : item.accept_length + 1].tolist())


def trace(decoder: RadarDecoder, prompt: Any, **options: Any) -> Trace:
    """Generate, and note every round.

    Args:
        decoder: with a tokenizer, made with engine="eager"; fallback=False lets every round draft.
        prompt, options: as for `decoder.rounds`.

    Returns:
        The generation. Its times are the decoder's alone, without the notes.

    Raises:
        ValueError: the decoder cannot be watched, or what `decoder.rounds` raises.
    """
    if decoder.engine_name != "eager" or decoder.tokenizer is None:
        raise UsageError('trace: expected a decoder with a tokenizer, made with engine="eager"')
    rounds: list[TracedRound] = []
    prompt_ids, seconds = decoder.encode(prompt), 0.0
    source = decoder.rounds(prompt_ids, **options)
    while True:
        started = time.perf_counter()
        item = next(source, None)
        seconds += time.perf_counter() - started
        if item is None:
            break
        root = rounds[-1].target_token if rounds else None
        if item.num_draft_calls == 0:  # the prompt's pass, or a plain step
            rounds.append(TracedRound(item, root, [], [], item.tokens[-1]))
        else:
            rounds.append(_traced(item, root, _look(decoder, item), decoder.policy))
    token_ids = [token for item in rounds for token in item.round.tokens]
    return Trace(
        prompt_ids,
        rounds,
        decoder.policy,
        decoder.tokenizer.decode(token_ids, skip_special_tokens=True),
        rounds[-1].round.finish_reason or "",
        summarize((item.round for item in rounds), seconds, decoder.engine_name),
    )


def _traced(item: Round, root: int | None, seen: _Seen, policy: StopPolicy) -> TracedRound:
    tree, k, calls = seen.tree, seen.tree.config.tree_top_k, item.num_draft_calls
    size = k + (calls - 1) * k * k
    scores, tokens, parents = tree.scores[0, :size], tree.tokens[0, :size].tolist(), tree.parents[0, :size].tolist()
    # the beam of a level is the parents of the next one, k children each; the last level's is still there
    beams = torch.cat((tree.parents[0, k:size:k].view(calls - 1, k), tree.beam_slots[:1]))
    real = torch.isfinite(scores).tolist()
    slot_of = {(parents[slot], tokens[slot]): slot for slot in range(size) if real[slot]}

    verified = _slots_of(seen.verified, slot_of)
    accepted = {-1}
    last = -1
    for token in seen.tokens[:-1]:
        last = slot_of[last, token]
        accepted.add(last)
    expanded = {slot for slot in beams.flatten().tolist() if real[slot]}
    kept = sorted(expanded | verified | {slot_of.get((last, seen.tokens[-1]), last)} - {-1})
    index = {slot: number for number, slot in enumerate([-1, *kept], start=-1)}
    values = scores.tolist()
    nodes = [
        Node(tokens[slot], index[parents[slot]], values[slot], slot in expanded, slot in verified, slot in accepted)
        for slot in kept
    ]
    return TracedRound(item, root, _calls(scores, beams, policy, tree.config.max_calls), nodes, seen.tokens[-1])


def _slots_of(verified: VerifyTree, slot_of: dict[tuple[int, int], int]) -> set[int]:
    """Slots of the verified nodes: siblings hold different tokens, so a path names its node."""
    slots = [-1]
    rows = zip(*(field[0].tolist() for field in (verified.draft_tokens, verified.parents, verified.valid)), strict=True)
    for token, parent, valid in list(rows)[1:]:
        slots.append(slot_of[slots[parent], token] if valid else -1)
    return set(slots[1:]) - {-1}


def _calls(scores: Tensor, beams: Tensor, policy: StopPolicy, max_calls: int) -> list[DraftCall]:
    """What each call proposed and left: scores [C] of all candidates, beams [calls, k] of slots."""
    k = beams.shape[1]
    levels = scores[beams]
    go_on: list[float | None] = [None] * len(beams)
    if isinstance(policy, RadarPolicy):
        with torch.inference_mode():
            logits = policy.network(levels[None].to(next(policy.network.parameters()).device))
            go_on = list(logits[0].softmax(-1)[:, 1].tolist())
    finite = torch.isfinite(scores)
    counts = [int(finite[:k].sum()), *finite[k:].view(-1, k * k).sum(1).tolist()]
    masses = levels.exp().sum(1).tolist()
    return [
        DraftCall(counts[call], masses[call], go_on[call] if call + 1 < max_calls else None, call + 1 < max_calls)
        for call in range(len(beams))
    ]
