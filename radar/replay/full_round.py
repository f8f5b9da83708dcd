"""A round drafted to the end, with the target's scores of all its candidates, and texts that are decoded by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from radar.config import SamplingParams, TreeConfig
from radar.decoder import RadarDecoder
from radar.draft.base import Drafter
from radar.draft.drafter import Eagle3Drafter
from radar.draft.tree import DraftTree
from radar.engine.admission import Admission
from radar.engine.ambient import ambient
from radar.engine.capture import capture, capture_each, on_stream
from radar.engine.steps import RoundSteps
from radar.errors import UsageError
from radar.generation.request import Request
from radar.policy.base import FixedDepth
from radar.replay.acceptance import Candidates, Text
from radar.target.model import TargetModel
from radar.target.ranks import check_whole
from radar_kernels import select_nodes

__all__ = ["FullRound", "FullRounds"]


class FullRound(RoundSteps):
    """Drafts `max_calls` times and verifies the root and every beam node, 1 + k (max_calls - 1) rows; no step asks the
    host.

    Every candidate is a beam node's child or the root's, so these rows score all candidates: what any stop, with a tree
    of any size, would have had accepted follows from them.

    Args:
        target: for so many rows at least; a whole one, no rank's part.
        config: the tree's shape; how many nodes a decoder verifies does not matter here.
        temperature: of `probabilities`.
        one_token: keep nothing but the root, so that the next round begins one token later.

    Attributes:
        probabilities: [B, C] the target's probability of every candidate after its parent's path, above temperature 0.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter, config: TreeConfig, *, temperature: float, one_token: bool = False
    ) -> None:
        check_whole(target.ranks, "a full round")
        super().__init__(target, drafter, FixedDepth(config.max_calls), config)
        self.temperature, self.one_token = temperature, one_token

    @staticmethod
    def num_rows(config: TreeConfig) -> int:
        """Rows of the verification."""
        return 1 + max(1, config.num_draft_columns)  # no tree is smaller than two

    def run(self) -> Tensor:
        """The whole round; returns what `commit` does."""
        self.begin()
        for _ in range(self.config.max_calls - 1):
            self.step()
        return self.finish()

    def select(self) -> None:
        """The root and all beam nodes: the candidates that have children."""
        tree, rows = self.drafter.tree, self.num_rows(self.config)
        beam = torch.zeros((len(tree.scores), 1 + tree.scores.shape[1]), dtype=torch.bool, device=tree.scores.device)
        beam = beam.scatter_(1, tree.parents + 1, True)[:, 1:] & (tree.scores > -torch.inf)
        scores = tree.scores.masked_fill(~beam, -torch.inf)
        k = self.config.tree_top_k
        self.nodes = select_nodes(scores, tree.tokens, tree.parents, self.root, total_tokens=rows, tree_top_k=k)
        # rows are in the order of slots; where beam nodes are few the first others fill up, as invalid rows
        spare = ~beam & ((~beam).cumsum(1) < rows - beam.sum(1, keepdim=True))
        self._row_of = torch.nn.functional.pad((beam | spare).cumsum(1), (1, 0))  # by slot + 1

    def verify(self) -> Tensor:
        """The target's token after each node [B, N]; keeps what it makes of the candidates."""
        nodes, tree = self.nodes, self.drafter.tree
        logits = self.score()
        if self.temperature > 0:
            log_probs = (logits.float() / self.temperature).log_softmax(-1)
            rows = self._row_of.gather(1, tree.parents + 1)
            self.probabilities = log_probs.flatten(1).gather(1, rows * log_probs.shape[-1] + tree.tokens).exp()
        indices = self.target.cache.length[:, None] + nodes.depths + 1  # of the tokens to come, in the text
        return self.sampler.sample(logits, indices, nodes.draft_tokens, nodes.ancestors)

    def accept(self, target_tokens: Tensor) -> None:
        """As in `RoundSteps`, or the root alone."""
        if self.one_token:
            self.nodes = self.nodes._replace(valid=torch.zeros_like(self.nodes.valid))
        super().accept(target_tokens)


class FullRounds:
    """Decodes in full rounds, with caches of its own; on a GPU a round is one CUDA graph, on a stream of its own.

    Threads may run several of them side by side, one text each.

    Args:
        decoder: whose model, head and tree it is.
        temperature: of the sampling; 0 is greedy.
        every_token: let a round begin at every token of the text, not where the round before ended.
    """

    def __init__(self, decoder: RadarDecoder, temperature: float, *, every_token: bool = False) -> None:
        source, tree, draft = decoder.engine.target, decoder.tree, decoder.draft
        self.decoder, self.temperature, self.every_token = decoder, temperature, every_token
        self.sampling = SamplingParams(temperature=temperature)
        most, rows = decoder.max_length, max(FullRound.num_rows(tree), source.max_rows)
        self.target = TargetModel(decoder.model, max_length=most, max_rows=rows, tap_layers=source.tap_layers)
        self.drafter = Eagle3Drafter(draft, source.embed_tokens, tree, max_length=most, max_rows=source.max_rows)
        self._stream: torch.cuda.Stream | None = None
        with ambient(self.target.device):
            self.round = FullRound(self.target, self.drafter, tree, temperature=temperature, one_token=every_token)
            self._admission = Admission(self.target, self.drafter, self.round.sampler)
            self._run: Callable[[], object] = self.round.run
            if self.target.device.type == "cuda":
                self._stream, prefill = torch.cuda.Stream(self.target.device), self._admission.prefill
                self._admission.chunks = capture_each(prefill.chunk, prefill.sizes, self._stream)
                on_stream(self._stream, self.round.run)
                self._run = capture(self.round.run, self._stream).replay

    def text(self, prompt: Sequence[int], limit: int, *, seed: int) -> Text:
        """Decode until an end token or `limit` tokens; the text is what decoding with `seed` gives. Raises ValueError
        where prompt and limit do not fit."""
        decoder, tree, admission = self.decoder, self.decoder.tree, self._admission
        ids, ends = decoder.encode(prompt), decoder.eos_token_ids
        if len(ids) + limit > decoder.max_length:
            raise UsageError(
                f"a prompt of {len(ids)} tokens with {limit} behind it does not fit max_length={decoder.max_length}"
            )
        starts: list[int] = []
        trees, shares = [Candidates.of(DraftTree(0, tree, torch.device("cpu")))], [torch.zeros(0, tree.num_candidates)]
        with ambient(self.target.device), torch.cuda.stream(self._stream):
            request = Request(ids, limit, replace(self.sampling, seed=seed), ends)
            new = tokens = admission.admit(request).tokens
            self.round.load(admission.token, admission.prefill.taps)
            while len(tokens) < limit and ends.isdisjoint(new):
                committed = len(ids) + len(tokens) - 1
                starts.append(len(tokens))
                self.target.cache.set_window(committed + FullRound.num_rows(tree))
                self.drafter.cache.set_window(committed + self.drafter.num_scratch_rows)
                self._run()
                _, _, accepted, *new = self.round.result[0].tolist()
                new = new[: accepted + 1]
                tokens = tokens + new
                trees.append(Candidates.of(self.drafter.tree))
                if self.temperature > 0:
                    shares.append(self.round.probabilities.cpu())
        tokens = tokens[:limit]
        end = next((i for i, token in enumerate(tokens) if token in ends), limit)
        stacked = Candidates(*map(torch.cat, zip(*trees, strict=True)))
        return Text(len(ids), tokens[: end + 1], ends, starts, stacked, torch.cat(shares))
