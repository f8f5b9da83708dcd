"""What an engine is: it takes prompts in and makes rounds. Three runners are: plain, eager and graph."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from radar.config import SamplingParams, TreeConfig
from radar.draft.base import Drafter
from radar.engine.fallback import Fallback
from radar.engine.sampler import Sampler
from radar.engine.steps import RoundSteps
from radar.errors import UsageError
from radar.metrics import Round
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel

__all__ = ["BatchEngine", "Engine", "EngineRequest", "Processing", "RoundEngine", "choose_engine"]


class Processing(Protocol):
    """Processors on the host between scores and tokens; see `radar.generation.processing`."""

    def choose(self, sampler: Sampler, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor]:
        """The token after `text`, from its logits [V], and the processed scores [V] float32."""

    def walk(self, sampler: Sampler, nodes: Any, logits: Tensor, text: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the target after each node of a tree [1, N], and logits and processed scores [n, V] of the path."""


class EngineRequest(Protocol):
    """What an engine reads of a request.

    Attributes:
        input_ids: the prompt, one token or more.
        sampling: how to choose tokens.
        processing: what the host does with the scores before; None: nothing, a round may be one graph.
        reuse_prefix: go on from what the caches hold of the prompt.
        logprobs: log-probabilities of each token and of so many of the likeliest in its place; None: none.
    """

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def processing(self) -> Processing | None: ...
    @property
    def reuse_prefix(self) -> bool: ...
    @property
    def logprobs(self) -> int | None: ...


class Engine(Protocol):
    """Decodes one request at a time.

    Attributes:
        name: which runner it is.
        target: the model, with its cache.
    """

    name: str
    target: TargetModel

    def refresh(self) -> bool:
        """Before a text: forget what is held if weights have changed. False: the model's modules or storages are not
        those that the engine was made for, so it is of no more use."""

    def admit(self, request: EngineRequest) -> Round:
        """Take a prompt and return its first token."""

    def round(self) -> Round:
        """The next tokens."""

    def launch_next(self) -> None:
        """Start on the next round, if the engine can work while the last one's tokens are dealt with."""

    def release(self) -> None:
        """Let go of what belongs to the request: its processors and their scores."""


class BatchEngine(Protocol):
    """Decodes several requests at a time, each in a row of its own; a key of the caller's names a text.

    Attributes:
        name: which runner it is.
        target: the model, with its cache.
    """

    name: str
    target: TargetModel

    @property
    def free(self) -> int:
        """Rows that a text could have now; 0 while texts wait for pages."""

    def refresh(self) -> bool:
        """See `Engine`; for a time when no text is held."""

    def admit(self, key: Hashable, request: EngineRequest, *, hurry: bool) -> Iterator[int]:
        """Take a prompt, one chunk at a time between other rows' rounds or along with them; tells the tokens of each, 0
        while there are too few pages for it, a round has to take along what it was told of, or no row is free for
        what has been taken. One prompt is taken after the other, the next one while all rows still hold a text.

        Args:
            hurry: others could be taken in as well, so that it is to go ahead of the rounds.
        """

    def entered(self) -> dict[Hashable, Round]:
        """The first token of every text whose prompt has been taken in since it was asked last."""

    def round(self) -> dict[Hashable, Round]:
        """A round of all rows that hold a text, by its key."""

    def launch_next(self) -> None:
        """See `Engine`."""

    def release(self, key: Hashable) -> None:
        """The text has ended, or its prompt is not to be taken further."""


class RoundEngine(Engine, Protocol):
    """An engine whose rounds draft.

    Attributes:
        drafter: proposes trees.
        policy: says when to stop drafting.
        config: shape of the trees.
        steps: what a round is made of.
        fallback: chooses between rounds and plain steps; None: rounds alone.
    """

    drafter: Drafter
    policy: StopPolicy
    config: TreeConfig
    steps: RoundSteps
    fallback: Fallback | None

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy from the next text on. Raises UsageError if it cannot serve the tree."""


def choose_engine(name: str | None, device: torch.device) -> str:
    """The engine named, checked against the device; None: "graph" on a GPU, "eager" elsewhere."""
    if name not in (None, "graph", "eager"):
        raise UsageError(f'engine must be "graph", "eager" or None, got {name!r}')
    if name == "graph" and device.type != "cuda":
        raise UsageError(f'engine="graph" needs a model on a CUDA device, this one is on {device}; use engine="eager"')
    return name or ("graph" if device.type == "cuda" else "eager")
