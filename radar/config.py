"""What a generation is asked for: the tree's shape and how tokens are chosen, checked at construction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from radar.errors import UsageError

__all__ = ["GREEDY", "NODE_CHOICES", "SamplingParams", "TreeConfig", "check_int"]

NODE_CHOICES = (16, 32, 60, 100, 128)
"""Numbers of nodes that a policy may choose among where it also says how many are verified."""

MOST_BIAS = 1e30  # by the largest penalty still a float32


def check_int(owner: str, name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{owner}: {name} must be an integer from {low} to {high}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """Size of the draft tree (EAGLE-2 section 4, EAGLE-3; the defaults are EAGLE-3's, except `max_calls`).

    Attributes:
        total_tokens: nodes that the target verifies in one forward, the root included.
        tree_top_k: beam width: nodes expanded per draft call, and children proposed for each of them.
        max_calls: upper bound of draft calls per round, whatever the policy says. EAGLE-3's depth 7 is 8 calls.
    """

    total_tokens: int = 60
    tree_top_k: int = 10
    max_calls: int = 16

    def __post_init__(self) -> None:
        check_int("TreeConfig", "total_tokens", self.total_tokens, 2, 256)
        check_int("TreeConfig", "tree_top_k", self.tree_top_k, 1, 16)
        check_int("TreeConfig", "max_calls", self.max_calls, 1, 16)

    @property
    def num_candidates(self) -> int:
        """Nodes that `max_calls` draft calls can propose: k from the root, then k for each of k beam nodes."""
        return self.tree_top_k + (self.max_calls - 1) * self.tree_top_k**2

    def levels(self) -> Iterator[slice]:
        """Slots of the candidates of depth 1 (the root's children) to max_calls."""
        k = self.tree_top_k
        yield slice(0, k)
        for start in range(k, self.num_candidates, k * k):
            yield slice(start, start + k * k)

    @property
    def node_choices(self) -> tuple[int, ...]:
        """What a policy may choose for a tree of this shape: `NODE_CHOICES` and its own number, as far as there are so
        many candidates."""
        most = self.num_candidates + 1
        return tuple(sorted({min(self.total_tokens, most), *(n for n in NODE_CHOICES if n <= most)}))

    @property
    def num_draft_columns(self) -> int:
        """Beam nodes whose keys and values the draft's cache holds at most: k for every call after the first."""
        return (self.max_calls - 1) * self.tree_top_k

    @property
    def max_accepted(self) -> int:
        """Tokens that one round can add at most: one for each level, and the target's own."""
        return self.max_calls + 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose a token from its logits; the names and meanings are those of transformers.

    Attributes:
        temperature: divides the logits, 1e-37 to 1e37 (normal float32); 0 takes the most likely token (greedy).
        top_p: keep the most likely tokens until their probabilities reach this, 0 (the best one) to 1 (all).
        top_k: keep this many of the most likely tokens, and what ties with the last of them; 0 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one, 0 to 1.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that the text holds
            already, prompt included; 1e-8 to 1e8, 1 does nothing.
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
            raise UsageError(f"SamplingParams: {name} must be {expected}, got {getattr(self, name)!r}")

        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                fail(name, "a number")
        if self.temperature != 0 and not 1e-37 <= self.temperature <= 1e37:
            fail("temperature", "0 (greedy) or from 1e-37 to 1e37")
        if not 0 <= self.top_p <= 1:
            fail("top_p", "from 0 to 1 (off)")
        if not 0 <= self.min_p <= 1:
            fail("min_p", "from 0 (off) to 1")
        if not 1e-8 <= self.repetition_penalty <= 1e8:
            fail("repetition_penalty", "from 1e-8 to 1e8 (1: off)")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 0 <= self.top_k < 2**31:
            fail("top_k", "an integer from 0 (off) to 2**31 - 1")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63
        ):
            fail("seed", "None or an integer from 0 to 2**63 - 1")
        if self.logit_bias is not None:
            for token, bias in self.logit_bias.items():
                if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                    raise UsageError(f"SamplingParams: logit_bias must map token ids (integers >= 0), got {token!r}")
                number = isinstance(bias, int | float) and not isinstance(bias, bool)
                if not number or not (bias == -math.inf or abs(bias) <= MOST_BIAS):
                    raise UsageError(
                        f"SamplingParams: logit_bias of token {token} must be a number of at most {MOST_BIAS:g} either "
                        f"way, or -inf to forbid it, got {bias!r}"
                    )
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))


GREEDY = SamplingParams()
