"""`/v1/completions`: text or ids in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radar.serve.jobs import Job
from radar.serve.logprobs import completion_form
from radar.serve.models import ServedModel
from radar.serve.openai import CompletionRequest
from radar.serve.options import open_texts
from radar.serve.settings import Limits
from radar.serve.texts import Piece, ServedText

__all__ = ["CompletionJob"]

MAX_TOKENS = 16  # OpenAI's, where a request does not say


class CompletionJob(Job):
    """See `Job`."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: CompletionRequest, model: ServedModel, limits: Limits) -> None:
        super().__init__(body, model, limits)
        self.body = body
        prompt: Any = body.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        self.prompts = [prompt] if is_one else list(prompt)
        self.count = len(self.prompts) * self.num_choices

    def open(self) -> list[ServedText]:
        """See `Job`."""
        self.texts = open_texts(
            self.model,
            [self.model.decoder.encode(prompt) for prompt in self.prompts],
            self.body,
            self.limits,
            max_tokens=self.body.max_tokens,
            default=MAX_TOKENS,
            logprobs=self.body.logprobs,
            is_chat=False,
        )
        return self.texts

    def deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """See `Job`."""
        if not (piece.text or piece.logprobs or piece.finish_reason):
            return []
        return [self._choice(number, piece)]

    def empty(self, number: int) -> dict[str, Any]:
        """See `Job`."""
        return self._choice(number, Piece("", [], None))

    def choice(self, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Job`."""
        found = [one for piece in pieces for one in piece.logprobs]
        offsets = [one for piece in pieces for one in piece.offsets]
        text = "".join(piece.text for piece in pieces)
        return self._choice(number, Piece(text, found, pieces[-1].finish_reason, offsets))

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None and piece.logprobs:
            logprobs = completion_form(piece.logprobs, piece.offsets, self.model.names)
        return {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
