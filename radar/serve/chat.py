"""`/v1/chat/completions`: messages through the model's chat template in, the assistant's message out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from radar.errors import UsageError
from radar.generation.prompt import encode_prompt
from radar.serve.errors import ApiError
from radar.serve.jobs import Job
from radar.serve.logprobs import chat_form
from radar.serve.models import ServedModel
from radar.serve.openai import ChatRequest, Message
from radar.serve.options import open_texts
from radar.serve.settings import Limits
from radar.serve.texts import Piece, ServedText
from radar.serve.tool_calls import ToolCallParser

__all__ = ["ChatJob"]

_FREE = ("add_generation_prompt", "continue_final_message")


class ChatJob(Job):
    """See `Job`."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatRequest, model: ServedModel, limits: Limits) -> None:
        super().__init__(body, model, limits)
        self.body = body
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true: add it or leave top_logprobs out", param="logprobs")
        self._tools = [] if body.tool_choice == "none" else [tool.model_dump() for tool in body.tools or []]
        self._parsers = [ToolCallParser() if self._tools else None for _ in range(self.count)]
        self._told = [0] * self.count  # calls that have been sent

    def open(self) -> list[ServedText]:
        """See `Job`."""
        body, decoder = self.body, self.model.decoder
        ids = encode_prompt(
            [_message(message) for message in body.messages],
            decoder.tokenizer,
            decoder.vocab_size,
            tools=self._tools,
            chat_template_kwargs=_template_arguments(body.chat_template_kwargs or {}, decoder.tokenizer),
        ).ids
        self.texts = open_texts(
            self.model,
            [ids],
            body,
            self.limits,
            max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
            default=None,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            is_chat=True,
        )
        return self.texts

    def begin(self) -> list[dict[str, Any]]:
        """See `Job`."""
        delta = {"role": "assistant", "content": ""}
        return [self._head(self.chunk_kind) | {"choices": [self._delta(number, delta)]} for number in range(self.count)]

    def deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """See `Job`."""
        parser, text = self._parsers[number], piece.text
        delta: dict[str, Any] = {}
        if parser is not None:
            text = parser.push(text) + (parser.finish() if piece.finish_reason else "")
            if new := parser.calls[self._told[number] :]:
                delta["tool_calls"] = new
                self._told[number] = len(parser.calls)
        if text:
            delta["content"] = text
        if not (delta or piece.logprobs or piece.finish_reason):
            return []
        reason = self._reason(piece.finish_reason, parser)
        return [self._delta(number, delta, self._logprobs(piece), reason)]

    def empty(self, number: int) -> dict[str, Any]:
        """See `Job`."""
        return self._delta(number, {})

    def choice(self, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Job`."""
        text, parser = "".join(piece.text for piece in pieces), self._parsers[number]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if parser is not None:
            text = parser.push(text) + parser.finish()
            calls = [{name: value for name, value in call.items() if name != "index"} for call in parser.calls]
            if calls:
                message |= {"content": text if text.strip() else None, "tool_calls": calls}
        found = Piece("", [one for piece in pieces for one in piece.logprobs], None)
        reason = self._reason(pieces[-1].finish_reason, parser)
        return {"index": number, "message": message, "logprobs": self._logprobs(found), "finish_reason": reason}

    def _reason(self, reason: str | None, parser: ToolCallParser | None) -> str | None:
        return "tool_calls" if reason == "stop" and parser is not None and parser.calls else reason

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return chat_form(piece.logprobs, self.model.names) if self.body.logprobs else None

    def _delta(
        self, number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _message(message: Message) -> dict[str, Any]:
    """As chat templates want it: what is not there is left out, and the arguments of calls are objects."""
    plain: dict[str, Any] = message.model_dump(exclude_none=True)
    if plain["role"] == "developer":
        plain["role"] = "system"
    plain.setdefault("content", "")
    for call in plain.get("tool_calls", ()):
        try:
            found = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            call["function"]["arguments"] = found
    return plain


def _template_arguments(given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Variables of the template. Arguments of the function that runs it, another template among them, are the
    server's."""
    function = getattr(tokenizer, "apply_chat_template", None)
    own = set(inspect.signature(function).parameters) - set(_FREE) if callable(function) else set()
    if taken := sorted(own & set(given)):
        raise UsageError(f"chat_template_kwargs: {taken[0]} is no variable of the template: leave it out")
    # a new message, also behind one of the assistant's, as OpenAI does
    return ({} if given.get("continue_final_message") else {"add_generation_prompt": True}) | dict(given)
