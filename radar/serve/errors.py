"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, one way for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from radar.errors import UsageError
from radar.serve.jsontext import dumps

__all__ = ["ApiError", "add_handlers", "api_error", "too_long"]

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_ADVICE = {
    "frequency_penalty": "only 0 is taken; repetition_penalty=, as transformers means it, is",
    "presence_penalty": "only 0 is taken; repetition_penalty=, as transformers means it, is",
    "response_format": "only {'type': 'text'} is taken: no grammar constrains the text",
    "tool_choice": "only 'auto' and 'none' are taken: nothing can force a call",
    "best_of": "only 1 is taken: ask for n texts and choose",
    "echo": "only false is taken: the prompt is known to who sent it",
    "suffix": "only null is taken: no text is filled in",
}


_BRANCHES = ("body", "str", "int", "float", "bool", "none")  # words of the validator, beside fields


class ApiError(HTTPException):
    """What a client is told.

    Args:
        status: of HTTP.
        message: what was wrong, what was expected, what to do.
        param: the field that was wrong.
        code: OpenAI's word for it.
        headers: beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return Response(dumps(self.body), self.status_code, self.headers, "application/json")


def too_long(prompt: int, asked: int | None, most: int, name: str) -> ApiError:
    """The context is full: `prompt` and `asked` tokens, of `most` in all; `name`: the prompt's field."""
    beside = "" if asked is None else f" and max_tokens asks for {asked} more"
    return ApiError(
        400,
        f"This model's maximum context length is {most} tokens, prompt and output together. The prompt has {prompt} "
        f"tokens{beside}: shorten it, or ask for less",
        param="max_tokens" if asked is not None and prompt < most else name,
        code="context_length_exceeded",
    )


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error: its own mistake by 400, any other by 500 without what is inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        unread = error.__cause__ is not None and error.status_code == 400  # deep, huge numbers, not UTF-8
        said = "the body is not JSON that can be read" if unread else error.detail
        return ApiError(error.status_code, said, headers=error.headers)
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed on this request; its log says why, under the x-request-id of this answer")


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first of what is wrong, by its place. What was sent is not repeated: it may be long, or no text."""
    found = max(error.errors(), key=_likely)
    place = [str(part) for part in found["loc"] if part not in _BRANCHES and re.fullmatch(r"\w+", str(part))]
    name = place[0] if place and not place[0].isdigit() else None
    if found["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found.get('ctx', {}).get('error', '')}")
    if found["type"] == "extra_forbidden":
        return ApiError(
            400, f"Unrecognized request argument supplied: {'.'.join(place)}: leave it out", param=name,
            code="unknown_parameter",
        )  # fmt: skip
    message = f"{'.'.join(place) or 'the body'}: {found['msg']}"
    if name in _ADVICE:
        message += f"; {_ADVICE[name]}"
    return ApiError(400, message, param=name)


def _likely(one: Any) -> tuple[bool, int]:
    """Of a union the branch that was meant is the one that fails deepest, or for another reason than its type."""
    return not one["type"].endswith("_type"), len(one["loc"])


def add_handlers(app: FastAPI) -> None:
    """Errors of the app take this shape; those that are nobody's mistake but ours pass the gate, see `Gate`."""

    async def handle(request: Request, error: Exception) -> Response:
        return api_error(error).response()

    for kind in (RequestValidationError, HTTPException, UsageError):
        app.add_exception_handler(kind, handle)
