"""A request among others: what its processors raise ends its own text, and no round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radar.config import SamplingParams
from radar.engine.base import Processing
from radar.engine.sampler import Sampler
from radar.generation.request import Request
from radar_kernels.reference_sampling import NO_TOKEN

__all__ = ["GuardedProcessing", "RowRequest"]


@dataclass
class GuardedProcessing:
    """Processing that has no token where a processor or criterion fails.

    Attributes:
        inner: asks them.
        error: what they raised; None: nothing.
    """

    inner: Processing
    error: BaseException | None = None

    def choose(self, sampler: Sampler, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor]:
        """See `Processing`."""
        try:
            return self.inner.choose(sampler, logits, text)
        except BaseException as error:  # also what ends a program: whoever reads the text gets it
            self.error = error
            return NO_TOKEN, torch.zeros_like(logits, dtype=torch.float32)

    def walk(self, sampler: Sampler, nodes: Any, logits: Tensor, text: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Processing`."""
        try:
            return self.inner.walk(sampler, nodes, logits, text)
        except BaseException as error:
            self.error = error
            tokens = torch.full(logits.shape[:2], NO_TOKEN, dtype=torch.int64, device=logits.device)
            return tokens, logits[0, :1].float(), torch.zeros_like(logits[0, :1], dtype=torch.float32)


@dataclass(frozen=True)
class RowRequest:
    """What an engine of several rows reads of a request; see `EngineRequest`."""

    input_ids: list[int]
    sampling: SamplingParams
    reuse_prefix: bool
    processing: GuardedProcessing | None = None
    logprobs: int | None = None

    @staticmethod
    def of(request: Request) -> RowRequest:
        """The same, guarded."""
        inner = request.processing
        guarded = None if inner is None else GuardedProcessing(inner)
        return RowRequest(request.input_ids, request.sampling, request.reuse_prefix, guarded, request.logprobs)

    @property
    def error(self) -> BaseException | None:
        """What its processors raised; None: nothing."""
        return None if self.processing is None else self.processing.error
