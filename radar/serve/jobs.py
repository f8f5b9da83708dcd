"""A request on its way: what to decode, and the answers that are made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from radar.serve.models import ServedModel
from radar.serve.openai import TextRequest
from radar.serve.settings import Limits
from radar.serve.texts import Piece, ServedText

__all__ = ["Job"]


class Job:
    """What both kinds of request do alike.

    Args:
        body: the request.
        model: that it named.
        limits: of the server.

    Attributes:
        texts: once they are open.
        count: how many they will be.
        began: when it came, by `time.perf_counter`.
    """

    prefix = kind = chunk_kind = ""

    def __init__(self, body: TextRequest, model: ServedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.streams, options = bool(body.stream), body.stream_options
        self.with_usage = bool(options and options.include_usage)
        self.with_rounds = bool(options and options.include_rounds)
        self.texts: list[ServedText] = []
        self.count, self.began = body.n or 1, time.perf_counter()
        self.num_choices = body.n or 1  # of a prompt
        self.id, self.created = f"{self.prefix}-{uuid4().hex}", int(time.time())

    def open(self) -> list[ServedText]:
        """Ask for the texts. Blocks for milliseconds."""
        raise NotImplementedError

    def begin(self) -> list[dict[str, Any]]:
        """Chunks before any text."""
        return []

    def chunks(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """Chunks for a piece of text `number`."""
        choices = self.deltas(number, piece)
        if not choices and self.with_rounds:
            choices = [self.empty(number)]
        made = [self._head(self.chunk_kind) | {"choices": [choice]} for choice in choices]
        if self.with_rounds and made:
            made[0]["radar"] = piece.round
        return made

    def deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """The choices of those chunks; none if there is nothing to say."""
        raise NotImplementedError

    def empty(self, number: int) -> dict[str, Any]:
        """A choice that says nothing."""
        raise NotImplementedError

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, if it was asked for."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": self.usage()}

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The answer in one; `pieces` of each text."""
        choices = [self.choice(number, made) for number, made in enumerate(pieces)]
        return self._head(self.kind) | {"choices": choices, "usage": self.usage()}

    def choice(self, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A text as a whole."""
        raise NotImplementedError

    def usage(self) -> dict[str, Any]:
        """Tokens; a prompt counts once, however many texts it has."""
        texts = self.texts
        prompt = sum(text.num_prompt_tokens for text in texts[:: self.num_choices])
        output = sum(text.num_tokens for text in texts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {
                "cached_tokens": sum(text.num_reused_tokens for text in texts[:: self.num_choices])
            },
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(text.num_accepted for text in texts),
                "rejected_prediction_tokens": sum(text.num_rejected for text in texts),
            },
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}
