"""A round drafted to the end, with the target's scores of all its candidates, as work that a graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.decoder import RadarDecoder
from radar.draft.drafter import Drafter
from radar.engine.capture import capture, on_stream
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.policy.base import FixedDepth
from radar.sampling import SamplingParams
from radar.target import TargetModel
from radar.tree import DraftTree, VerifyTree
from radar.verify import Acceptance

__all__ = ["Drafted", "FullRound", "FullRounds"]


class Drafted(NamedTuple):
    """One round.

    Attributes:
        tokens: certain after it.
        tree: its candidates; None for the prompt's pass.
        entropy: nats, of the target's distribution (at temperature 1) behind the last of the tokens.
        probabilities: [C] float32, the target's probability of every candidate after its parent's path, at the
            temperature of the sampling; None at temperature 0.
    """

    tokens: list[int]
    tree: DraftTree | None
    entropy: float
    probabilities: Tensor | None = None


class FullRound(RoundSteps):
    """Drafts `max_calls` times and verifies the root and every beam node, 1 + k (max_calls - 1) rows.

    Every candidate is a beam node's child or the root's, so these rows score all candidates: what any stop, with a tree
    of any size, would have had accepted follows from them.

    Args:
        target: for so many rows at least.
        config: the tree's shape; how many nodes a decoder verifies does not matter here.
        temperature: of `probabilities`.
        one_token: keep nothing but the root, so that the next round begins one token later.

    Attributes:
        entropies: [B] of the distribution that the root was taken from.
        probabilities: [B, C] as in `Drafted`; meaningless at temperature 0.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, config: TreeConfig, *, temperature: float, one_token: bool = False
    ) -> None:
        super().__init__(target, drafter, FixedDepth(config.max_calls), config)
        batch, device = self.root.shape[0], target.device
        k, levels = config.tree_top_k, config.max_calls - 1
        rows = self.num_rows(config)
        self.temperature, self.one_token = temperature, one_token
        self._tokens = torch.zeros((batch, rows), dtype=torch.int64, device=device)
        self._slots = torch.full((batch, rows), -1, dtype=torch.int64, device=device)  # of the candidates
        self._valid = torch.ones((batch, rows), dtype=torch.bool, device=device)
        self._ancestors = torch.zeros((batch, rows, -(-rows // 64)), dtype=torch.int64, device=device)
        self._ancestors[:, 0, 0] = 1
        depths = torch.cat((torch.zeros(1, dtype=torch.int64), torch.arange(1, levels + 1).repeat_interleave(k)))
        self._depths = depths.to(device).expand(batch, rows).contiguous()
        self._rows = torch.arange(rows, device=device).expand(batch, rows)
        self._row_of = torch.zeros((batch, config.num_candidates + 1), dtype=torch.int64, device=device)  # by slot + 1

    @staticmethod
    def num_rows(config: TreeConfig) -> int:
        """Rows of the verification."""
        return 1 + config.num_draft_columns

    def run(self) -> Tensor:
        """The whole round; returns what `commit` does."""
        self.begin()
        for level in range(1, self.config.max_calls):
            self._keep_beam(level)
            self.step()
        return self.finish()

    def _keep_beam(self, level: int) -> None:
        tree, k = self.drafter.tree, self.config.tree_top_k
        here = slice(1 + (level - 1) * k, 1 + level * k)
        self._tokens[:, here] = tree.beam_tokens
        self._slots[:, here] = tree.beam_slots
        self._valid[:, here] = tree.beam_scores > -torch.inf
        words = tree.beam_ancestors  # of columns that start at the first beam node: here the root stands before it
        shifted = words << 1
        shifted[..., 1:] |= (words[..., :-1] >> 63) & 1
        shifted[..., 0] |= 1
        width = min(self._ancestors.shape[-1], words.shape[-1])
        self._ancestors[:, here, :width] = shifted[..., :width]
        if self._ancestors.shape[-1] > width:
            self._ancestors[:, here, width] = (words[..., -1] >> 63) & 1

    def select(self) -> None:
        """The root and all beam nodes."""
        self._tokens[:, 0] = self.root
        self._row_of.scatter_(1, self._slots + 1, self._rows)
        parents = self.drafter.tree.parents.gather(1, self._slots.clamp(min=0))
        parents = self._row_of.gather(1, parents + 1)
        parents[:, 0] = 0
        self.nodes = VerifyTree(self._tokens, parents, self._depths, self._valid, self._ancestors)

    def verify(self) -> Tensor:
        """The target's token after each node [B, N]; keeps what it makes of the candidates."""
        nodes, tree = self.nodes, self.drafter.tree
        logits = self.score()
        log_probs = logits.float().log_softmax(-1)
        self._entropies = -(log_probs.exp() * log_probs).sum(-1)
        if self.temperature > 0:
            log_probs = (logits.float() / self.temperature).log_softmax(-1)
            rows = self._row_of.gather(1, tree.parents + 1)
            self.probabilities = log_probs.flatten(1).gather(1, rows * log_probs.shape[-1] + tree.tokens).exp()
        indices = self.target.cache.length[:, None] + nodes.depths + 1  # of the tokens to come, in the text
        return self.sampler.sample(logits, indices, nodes.draft_tokens, nodes.ancestors)

    def accept(self, target_tokens: Tensor) -> None:
        """As in `RoundSteps`, or the root alone."""
        super().accept(target_tokens)
        if self.one_token:
            found = self._accepted
            first = found.tokens[:, 0].contiguous()
            self._accepted = Acceptance(
                torch.zeros_like(found.path), found.tokens, torch.zeros_like(found.accept_length), first
            )

    def commit(self) -> Tensor:
        """As in `RoundSteps`; a path longer than the tree that a decoder verifies is kept too."""
        accepted = self._accepted
        last = accepted.path.gather(1, accepted.accept_length[:, None])
        self.entropies = self._entropies.gather(1, last)[:, 0]
        return super().commit()


class FullRounds:
    """Full rounds of texts, with caches of their own; on a GPU a round is one CUDA graph.

    Args:
        decoder: whose model, head and tree it is.
        temperature: of the sampling; 0 is greedy.
        every_token: let a round begin at every token of the text, not where the round before ended.
    """

    def __init__(self, decoder: RadarDecoder, temperature: float, *, every_token: bool = False) -> None:
        source, tree = decoder.engine, decoder.tree
        self.decoder, self.temperature, self.every_token = decoder, temperature, every_token
        prompt_rows = source.target.max_rows
        self.target = TargetModel(
            decoder.model,
            max_length=decoder.max_length,
            max_rows=max(FullRound.num_rows(tree), prompt_rows),
            tap_layers=source.target.tap_layers,
        )
        self.drafter = Drafter(
            source.drafter.draft,
            source.drafter.embed_tokens,
            tree,
            max_length=decoder.max_length,
            max_rows=prompt_rows,
        )
        self._prefill = Prefill(self.target, self.drafter)
        with torch.inference_mode():
            self.round = FullRound(self.target, self.drafter, tree, temperature=temperature, one_token=every_token)
            self._run: Callable[[], object] = self._work
            if self.target.device.type == "cuda":
                stream = torch.cuda.Stream(self.target.device)
                on_stream(stream, self._work)
                self._run = capture(self._work, stream).replay

    def _work(self) -> None:
        self._result = self.round.run()

    def of(self, prompt: Sequence[int], limit: int | None, *, seed: int) -> Iterator[Drafted]:
        """The rounds of one text, until an end token or `limit` tokens; the text is what decoding with `seed` gives.

        Raises ValueError for a prompt that does not fit.
        """
        decoder, steps, tree = self.decoder, self.round, self.decoder.tree
        ids = decoder.encode(prompt)
        if len(ids) >= decoder.max_length:
            raise ValueError(f"the prompt has {len(ids)} tokens and the cache holds max_length={decoder.max_length}")
        left, length = decoder.max_length - len(ids) if limit is None else limit, len(ids)
        with torch.inference_mode():
            input_ids = torch.tensor([ids], device=self.target.device)
            steps.sampler.set(SamplingParams(temperature=self.temperature, seed=seed))
            steps.sampler.start(input_ids)
            self._prefill.run(input_ids)
            steps.load(self._prefill.logits, self._prefill.taps)
            log_probs = self._prefill.logits.float().log_softmax(-1)
            root = int(steps.root)
            yield Drafted([root], None, float(-(log_probs.exp() * log_probs).sum()))
            left -= 1
            while left > 0 and root not in decoder.eos_token_ids:
                self.target.cache.set_window(length + FullRound.num_rows(tree))
                self.drafter.cache.set_window(length + tree.max_accepted + tree.num_draft_columns)
                self._run()
                _, accepted, *tokens = self._result[0].tolist()
                length += accepted + 1
                tokens = _cut(tokens[: accepted + 1], left, decoder.eos_token_ids)
                left, root = left - len(tokens), tokens[-1]
                probabilities = steps.probabilities[0].cpu() if self.temperature > 0 else None
                yield Drafted(tokens, self.drafter.tree.snapshot(), max(0.0, float(steps.entropies)), probabilities)


def _cut(tokens: list[int], limit: int, ends: frozenset[int]) -> list[int]:
    kept = tokens[:limit]
    first = next((i for i, token in enumerate(kept) if token in ends), len(kept))
    return kept[: first + 1]
