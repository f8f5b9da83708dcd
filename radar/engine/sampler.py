"""The sampler: parameters and the text's history on the device, and the choice of tokens.

Sampling is lossless by shared noise: the token at an index of the text is the argmax of the target's scores there plus
Gumbel noise that depends on seed, index and token alone. Decoding with any draft tree, any stop policy or none at all
then gives one and the same text for one seed.
"""

from __future__ import annotations

import copy
import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

from radar.config import GREEDY, SamplingParams
from radar.engine.upload import upload
from radar.errors import UsageError
from radar_kernels import SamplingState, greedy_tokens, mark_seen, sample_tokens

__all__ = ["Sampler", "SavedSampler"]


class SavedSampler(NamedTuple):
    """What a row's tokens are chosen by."""

    state: list[Tensor]
    params: SamplingParams
    seed: int


class Sampler:
    """Chooses tokens on the device; `set` changes values, never storage, so captured graphs stay valid.

    Attributes:
        state: the kernels' view of parameters and history.
        params: as last set; greedy at first.
        seed: the seed in use, drawn if `params.seed` is None.

    Args:
        batch_size: B, sequences; `set` gives all the same parameters, a `row` has its own.
        vocab_size: V of the logits.
        device: where the logits are.
    """

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device) -> None:
        def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((batch_size,), value, dtype=dtype, device=device)

        self.vocab_size = vocab_size
        self.state = SamplingState(
            seed=full(0, torch.int64),
            temperature=full(0),
            top_k=full(0, torch.int32),
            top_p=full(1),
            min_p=full(0),
            repetition_penalty=full(1),
            biased=full(0, torch.bool),
            logit_bias=torch.zeros(batch_size, vocab_size, dtype=torch.float32, device=device),
            seen=torch.zeros(batch_size, math.ceil(vocab_size / 32), dtype=torch.int32, device=device),
        )
        self._rows: list[Sampler] = []
        self.set(GREEDY)

    def row(self, index: int) -> Sampler:
        """The sampler of one row of the batch, with parameters of its own, in the same storage. Taken for all rows, in
        order, or for none."""
        view = copy.copy(self)
        view._rows = []
        view.state = SamplingState(*(tensor[index : index + 1] for tensor in self.state))
        self._rows.append(view)
        return view

    def first(self, count: int) -> Sampler:
        """The sampler of the first rows, in the same storage. For one whose rows are taken."""
        view = copy.copy(self)
        view._rows = self._rows[:count]
        view.state = SamplingState(*(tensor[:count] for tensor in self.state))
        return view

    def move(self, source: int, target: int) -> None:
        """Give one row what another one has: parameters, seed and history. For one whose rows are taken."""
        for tensor in self.state:
            tensor[target] = tensor[source]
        self._rows[target].params, self._rows[target].seed = self._rows[source].params, self._rows[source].seed

    def save(self, row: int) -> SavedSampler:
        """A copy of what a row has. For one whose rows are taken."""
        return SavedSampler([x[row].clone() for x in self.state], self._rows[row].params, self._rows[row].seed)

    def restore(self, row: int, saved: SavedSampler) -> None:
        """Give it to a row. For one whose rows are taken."""
        for tensor, value in zip(self.state, saved.state, strict=True):
            tensor[row] = value
        self._rows[row].params, self._rows[row].seed = saved.params, saved.seed

    @property
    def is_greedy(self) -> bool:
        """Whether `greedy_tokens` is the whole of sampling; known on the host, so a caller may skip `sample`."""
        if self._rows:
            return all(row.is_greedy for row in self._rows)
        params = self.params
        return params.temperature == 0 and params.repetition_penalty == 1 and not params.logit_bias

    def set(self, params: SamplingParams) -> None:
        """Take new parameters; the history stays. Raises ValueError if a biased token is not in the vocabulary."""
        bias = params.logit_bias or {}
        wrong = [token for token in bias if token >= self.vocab_size]
        if wrong:
            raise UsageError(f"logit_bias names token {wrong[0]}, but the vocabulary ends at {self.vocab_size - 1}")
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") >> 1 if params.seed is None else params.seed
        self.state.seed.fill_(self.seed)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            getattr(self.state, name).fill_(getattr(params, name))
        self.state.biased.fill_(bool(bias))
        self.state.logit_bias.zero_()
        if bias:
            own = self.state.logit_bias
            row, tokens = upload(list(bias.values()), own.device, own.dtype), upload(list(bias), own.device)
            own.index_copy_(1, tokens, row.expand(len(own), -1))

    def start(self, prompt_ids: Tensor) -> None:
        """Begin a text: the history is the prompt [B, P] int64, P >= 1."""
        self.state.seen.zero_()
        self.commit(prompt_ids, torch.full_like(prompt_ids[:, 0], prompt_ids.shape[1]))

    def sample(
        self,
        logits: Tensor,
        positions: Tensor,
        draft_tokens: Tensor | None = None,
        ancestors: Tensor | None = None,
        nodes: Tensor | None = None,
    ) -> Tensor:
        """The token after each node.

        Args:
            logits: [B, N, V], or of some nodes [M, 1, V].
            positions: [B, N] int64, the index in the text that the sampled token will have: that of the node, plus 1.
            draft_tokens, ancestors: [B, N] and [B, N, W] of a `VerifyTree`; None: the text is what `commit` was given.
            nodes: [M] which those are, row * N + node, or -1; see `sample_tokens`.

        Returns:
            [B, N] int64; NO_TOKEN (-1) where the scores are not numbers.
        """
        if self.is_greedy and logits.device.type == "cpu" and nodes is None:
            return greedy_tokens(logits)  # a graph on a GPU serves all parameters, here they may choose the code
        return sample_tokens(logits, positions, self.state, draft_tokens=draft_tokens, ancestors=ancestors, nodes=nodes)

    def commit(self, tokens: Tensor, count: Tensor) -> None:
        """Add the first `count` [B] of `tokens` [B, A] to the history."""
        mark_seen(self.state.seen, tokens, count)
