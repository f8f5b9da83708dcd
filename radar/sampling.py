"""How tokens are chosen: parameters, and the sampler that keeps them and the text's history on the device.

Sampling is lossless by shared noise: the token at an index of the text is the argmax of the target's scores there plus
Gumbel noise that depends on seed, index and token alone. Decoding with any draft tree, any stop policy or none at all
then gives one and the same text for one seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from radar_kernels import SamplingState, mark_seen, sample_tokens

__all__ = ["GREEDY", "LogitsProcessor", "Sampler", "SamplingParams", "apply_processors"]

MOST_BIAS = 1e30  # by the largest penalty, over the smallest temperature, still a float32
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # (input_ids [1, L], scores [1, V]) -> scores [1, V]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose a token from its logits; the names and meanings are those of transformers.

    Attributes:
        temperature: divides the logits, 1e-4 to 1e4; 0 takes the most likely token (greedy).
        top_p: keep the most likely tokens until their probabilities reach this, above 0 to 1; 1 keeps all.
        top_k: keep this many of the most likely tokens, and what ties with the last of them; 0 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one, 0 to 1.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that the text holds
            already, prompt included; 1e-2 to 1e2, 1 does nothing.
        logit_bias: token id -> what is added to its logit, 1e30 at most either way; -inf bans the token.
        seed: of the noise, 0 to 2**63 - 1; None draws one, see `Sampler.seed`.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        def fail(name: str, expected: str) -> None:
            raise ValueError(f"SamplingParams: {name} must be {expected}, got {getattr(self, name)!r}")

        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                fail(name, "a number")
        if self.temperature != 0 and not 1e-4 <= self.temperature <= 1e4:
            fail("temperature", "0 (greedy) or from 1e-4 to 1e4")
        if not 0 < self.top_p <= 1:
            fail("top_p", "above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            fail("min_p", "from 0 (off) to 1")
        if not 1e-2 <= self.repetition_penalty <= 1e2:
            fail("repetition_penalty", "from 0.01 to 100 (1: off)")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 0 <= self.top_k < 2**31:
            fail("top_k", "an integer from 0 (off) to 2**31 - 1")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63
        ):
            fail("seed", "None or an integer from 0 to 2**63 - 1")
        if self.logit_bias is not None:
            for token, bias in self.logit_bias.items():
                if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                    raise ValueError(f"SamplingParams: logit_bias must map token ids (integers >= 0), got {token!r}")
                number = isinstance(bias, int | float) and not isinstance(bias, bool)
                if not number or not (bias == -math.inf or abs(bias) <= MOST_BIAS):
                    raise ValueError(
                        f"SamplingParams: logit_bias of token {token} must be a number of at most {MOST_BIAS:g} either "
                        f"way, or -inf to forbid it, got {bias!r}"
                    )
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))


GREEDY = SamplingParams()


class Sampler:
    """Chooses tokens on the device; `set` changes values, never storage, so captured graphs stay valid.

    Attributes:
        state: the kernels' view of parameters and history.
        params: as last set; greedy at first.
        seed: the seed in use, drawn if `params.seed` is None.

    Args:
        batch_size: B, sequences, all with the same parameters.
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
            logit_bias=torch.zeros(batch_size, vocab_size, device=device),
            seen=torch.zeros(batch_size, math.ceil(vocab_size / 32), dtype=torch.int32, device=device),
        )
        self.set(GREEDY)

    @property
    def is_greedy(self) -> bool:
        """Whether `logits.argmax(-1)` is the whole of sampling; known on the host, so a caller may skip `sample`."""
        params = self.params
        return params.temperature == 0 and params.repetition_penalty == 1 and not params.logit_bias

    def set(self, params: SamplingParams) -> None:
        """Take new parameters; the history stays. Raises ValueError if a biased token is not in the vocabulary."""
        bias = params.logit_bias or {}
        wrong = [token for token in bias if token >= self.vocab_size]
        if wrong:
            raise ValueError(f"logit_bias names token {wrong[0]}, but the vocabulary ends at {self.vocab_size - 1}")
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") >> 1 if params.seed is None else params.seed
        self.state.seed.fill_(self.seed)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            getattr(self.state, name).fill_(getattr(params, name))
        self.state.biased.fill_(bool(bias))
        self.state.logit_bias.zero_()
        if bias:
            row = self.state.logit_bias.new_tensor(list(bias.values()))
            self.state.logit_bias[:, list(bias)] = row

    def start(self, prompt_ids: Tensor) -> None:
        """Begin a text: the history is the prompt [B, P] int64, P >= 1."""
        self.state.seen.zero_()
        self.commit(prompt_ids, torch.full_like(prompt_ids[:, 0], prompt_ids.shape[1]))

    def sample(
        self, logits: Tensor, positions: Tensor, draft_tokens: Tensor | None = None, ancestors: Tensor | None = None
    ) -> Tensor:
        """The token after each node.

        Args:
            logits: [B, N, V].
            positions: [B, N] int64, the index in the text that the sampled token will have: that of the node, plus 1.
            draft_tokens, ancestors: [B, N] and [B, N, W] of a `VerifyTree`; None: the text is what `commit` was given.

        Returns:
            [B, N] int64.
        """
        if self.is_greedy and logits.device.type == "cpu":
            return logits.argmax(dim=-1)  # a graph on a GPU serves all parameters, here they may choose the code
        return sample_tokens(logits, positions, self.state, draft_tokens=draft_tokens, ancestors=ancestors)

    def commit(self, tokens: Tensor, count: Tensor) -> None:
        """Add the first `count` [B] of `tokens` [B, A] to the history."""
        mark_seen(self.state.seen, tokens, count)


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
                scores = processor(input_ids, scores)
            processed[batch, node] = scores[0]
    return processed
