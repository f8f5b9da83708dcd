"""Rounds above temperature 0: the sampled text, and the target's probability of every candidate that matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radar.decoder import RadarDecoder
from radar.engine.eager import EagerEngine
from radar.target import TargetModel
from radar.train.acceptance import candidate_depths, verified
from radar.tree import DraftTree, pack_bits
from radar.verify import accept

__all__ = ["Drafted", "LogitsProbe", "candidate_probabilities", "entropy_of_root", "sampled_rounds"]


class Drafted(NamedTuple):
    """One round.

    Attributes:
        tokens: certain after it.
        tree: its candidates; None for the prompt's pass.
        entropy: nats, of the target's distribution (at temperature 1) behind the last of the tokens.
        probabilities: [C] as `acceptance_distribution` takes them; None at temperature 0.
    """

    tokens: list[int]
    tree: DraftTree | None
    entropy: float
    probabilities: Tensor | None = None


class LogitsProbe:
    """Keeps the scores that the target's output layer gave last [B, N, V], by a forward hook while it is entered."""

    def __init__(self, model: Any) -> None:
        self._layer = model.get_output_embeddings()
        self._last: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        if self._last is None:
            raise ValueError("the target's output layer was not called: record with a decoder of engine='eager'")
        return self._last

    def __enter__(self) -> LogitsProbe:
        self._handle = self._layer.register_forward_hook(self._keep)
        return self

    def _keep(self, _module: Any, _args: Any, output: Tensor) -> None:
        self._last = output

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()


def entropy_of_root(tree: DraftTree | None, root: int, logits: Tensor, target_tokens: Tensor) -> float:
    """Entropy of the distribution that the next root was taken from.

    Args:
        tree, root: the round; None is the prompt's pass, whose last row it is.
        logits: [1, N, V] after each verified node; target_tokens: [1, N] the target's choices.
    """
    row = logits.shape[1] - 1
    if tree is not None:
        nodes = tree.select(torch.tensor([root]))
        walked = accept(nodes, target_tokens.cpu(), tree.config.max_accepted)
        row = int(walked.path[0, walked.accept_length[0]])
    log_probs = logits[0, row].double().log_softmax(-1)
    return max(0.0, -float((log_probs.exp() * log_probs).sum()))


def sampled_rounds(
    decoder: RadarDecoder, prompt: Sequence[int], limit: int | None, *, temperature: float, seed: int
) -> Iterator[Drafted]:
    """Sample a text, every round drafted to `max_calls`; ends at an end token or after `limit` tokens.

    A token is drawn after every verified node, and the walk along the drawn tokens is the round: what is accepted and
    what comes next have the target's distribution.

    Raises ValueError for a prompt that does not fit, or a decoder whose rounds are not driven from the host.
    """
    engine = decoder.engine
    if not isinstance(engine, EagerEngine):
        raise ValueError("recording above temperature 0 looks into the round: make the decoder with engine='eager'")
    ids = decoder.encode(prompt)
    if len(ids) >= decoder.max_length:
        raise ValueError(f"the prompt has {len(ids)} tokens and the cache holds max_length={decoder.max_length}")
    left = decoder.max_length - len(ids) if limit is None else limit
    target, drafter, steps, tree = engine.target, engine.drafter, engine.steps, decoder.tree
    generator = torch.Generator(target.device).manual_seed(seed)

    def draw(logits: Tensor) -> Tensor:
        probabilities = (logits[0].float() / temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator).mT

    with torch.inference_mode(), LogitsProbe(decoder.model) as probe:
        engine.start(torch.tensor([ids], device=target.device))
        token = draw(probe.logits[:, -1:])
        steps.root.copy_(token[0])
        steps.tokens[:, 0] = token[0]
        root, length = int(token), len(ids)
        yield Drafted([root], None, entropy_of_root(None, -1, probe.logits, token))
        left -= 1
        while left > 0 and root not in decoder.eos_token_ids:
            target.cache.set_window(length + tree.total_tokens)
            drafter.cache.set_window(length + tree.max_accepted + tree.num_draft_columns)
            steps.begin()
            for _ in range(tree.max_calls - 1):
                steps.step()
            drafted = drafter.tree.snapshot()
            probabilities = candidate_probabilities(target, drafted, root, temperature)
            steps.select()
            steps.verify()
            token = draw(probe.logits)
            entropy = entropy_of_root(drafted, root, probe.logits, token)
            steps.accept(token)
            _, accepted, *tokens = steps.commit()[0].tolist()
            length += accepted + 1
            tokens = _cut(tokens[: accepted + 1], left, decoder.eos_token_ids)
            left, root = left - len(tokens), tokens[-1]
            yield Drafted(tokens, drafted, entropy, probabilities)


def candidate_probabilities(target: TargetModel, tree: DraftTree, root: int, temperature: float) -> Tensor:
    """The target's probability of every candidate that some stop verifies, after its parent's path [C] float64.

    The target runs over the inner nodes of the union of all stops' trees, in as many forwards of `total_tokens` rows as
    they need (mostly one); nothing is committed.
    """
    union = verified(tree).any(0).nonzero().flatten().tolist()
    parents: list[int] = tree.parents[0].tolist()
    tokens, depths = tree.tokens[0].tolist(), candidate_depths(tree).tolist()
    result = torch.zeros(len(parents), dtype=torch.float64)
    waiting = sorted({parents[slot] for slot in union})
    while waiting:
        rows = _chunk(waiting, parents, tree.config.total_tokens)
        row_of = {slot: row for row, slot in enumerate(rows)}
        reach = torch.eye(len(rows), dtype=torch.bool)
        for row, slot in enumerate(rows[1:], start=1):
            reach[row] |= reach[row_of[parents[slot]]]
        ids = torch.tensor([[root if slot < 0 else tokens[slot] for slot in rows]], device=target.device)
        depth = torch.tensor([[0 if slot < 0 else depths[slot] for slot in rows]], device=target.device)
        logits, _ = target.verify(ids, depth, pack_bits(reach)[None].to(target.device))
        probabilities = (logits[0].double() / temperature).softmax(-1).cpu()
        for slot in union:
            if parents[slot] in row_of:
                result[slot] = probabilities[row_of[parents[slot]], tokens[slot]]
        waiting = [slot for slot in waiting if slot not in row_of]
    return result


def _chunk(waiting: Sequence[int], parents: Sequence[int], most: int) -> list[int]:
    """The root and as many waiting slots, with their ancestors, as fit into `most` rows; parents before children."""
    rows = {-1}
    for slot in waiting:
        branch = []
        while slot not in rows:
            branch.append(slot)
            slot = parents[slot]
        if len(rows) + len(branch) <= most:
            rows.update(branch)
    return sorted(rows)


def _cut(tokens: list[int], limit: int, ends: frozenset[int]) -> list[int]:
    kept = tokens[:limit]
    first = next((i for i, token in enumerate(kept) if token in ends), len(kept))
    return kept[: first + 1]
